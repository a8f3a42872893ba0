"""Attention in which each head may look at nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, read_entries
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
    _, heads, _ = queries.shape
    key_value_heads, value_size = keys.shape[2], values.shape[3]
    sink = sinks.astype(np.float64).reshape(key_value_heads, heads // key_value_heads, 1, 1)
    out = np.empty((len(queries), heads, value_size), np.float32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        if start == stop:
            continue
        positions = rows.positions[start:stop]
        first = 0 if window is None else max(0, int(positions[0]) - window + 1)
        entries = np.arange(first, int(positions[-1]) + 1)
        page = rows.page_table[sequence, entries // rows.page_tokens]
        slot = entries % rows.page_tokens
        key = read_entries(keys[page, slot]).astype(np.float64)
        value = read_entries(values[page, slot]).astype(np.float64)
        query = queries[start:stop].astype(np.float64)
        query = query.reshape(len(query), key_value_heads, heads // key_value_heads, -1)
        scores = scale * np.einsum("rkgd,tkd->kgrt", query, key, optimize=True)
        hidden = entries[None, :] > positions[:, None]
        if window is not None:
            hidden |= entries[None, :] <= positions[:, None] - window
        scores[..., hidden] = -np.inf
        most = np.maximum(scores.max(axis=-1, keepdims=True), sink)
        scores = np.exp(scores - most)
        scores /= scores.sum(axis=-1, keepdims=True) + np.exp(sink - most)
        mixed = np.einsum("kgrt,tkd->rkgd", scores, value, optimize=True)
        out[start:stop] = mixed.reshape(len(query), heads, value_size)
    return out
