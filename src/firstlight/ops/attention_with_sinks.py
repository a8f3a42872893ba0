"""Attention in which each head may look at nothing."""

from __future__ import annotations

from typing import Any

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, attend
from firstlight.ops.contract import Cost, Tolerance, define, get_op
from firstlight.ops.paging import PagedRows


def _attention_with_sinks_cost(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    sinks: Any,
) -> Cost:
    return get_op("attention").cost(queries, keys, values, rows, scale, window, None)


@define(
    Tolerance(
        relative=5e-6,
        absolute=1e-6,
        reason="float32 dot products and one softmax; an online softmax rescales partial sums",
    ),
    _attention_with_sinks_cost,
)
def attention_with_sinks(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    sinks: Floats,
) -> Floats:
    """`attention` whose softmax has one more term in its denominator: e^sink of the query's head.

    It is as if each head saw a key whose score is its sink and whose value is zero (Xiao et al.
    2023, arXiv:2309.17453, section 3.3; gpt-oss's model card, arXiv:2508.10925, section 2.2).

    Args:
        queries, keys, values, rows, scale, window: as in `attention`.
        sinks: float32 [heads].

    Returns:
        float32 [rows, heads, value_size]; scores and sums in float64.
    """
    return attend(queries, keys, values, rows, scale, window, None, "none", sinks)
