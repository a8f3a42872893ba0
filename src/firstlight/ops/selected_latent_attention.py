"""Latent attention over some of the positions that a row sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, softmax_weights
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding, round_activations
from firstlight.ops.select_entries import entries_seen
from firstlight.ops.shape import Shape, context_range, rows_range

Integers = NDArray[np.int32]


def _selected_latent_attention_cost(
    queries: Floats,
    entries: StreamPages,
    value_size: int,
    rows: PagedRows,
    selected: Integers,
    scale: float,
) -> Cost:
    count, heads, size = queries.shape
    seen = np.minimum(rows.positions.astype(np.int64) + 1, selected.shape[1])
    together = int(seen.sum())
    given = 4 * count * (heads * (size + value_size) + selected.shape[1])
    return Cost(
        together * size * entries.dtype.itemsize + given,
        together * heads * 2 * (size + value_size),
    )


def _selected_latent_attention_shape(
    queries: Floats,
    entries: StreamPages,
    value_size: int,
    rows: PagedRows,
    selected: Integers,
    scale: float,
) -> Shape:
    context = rows.page_table.shape[1] * rows.page_tokens
    count, heads, size = queries.shape
    return (
        *(heads, size, value_size, entries.dtype.itemsize, selected.shape[1]),
        *(context_range(context), rows_range(count)),
    )


@define(
    Tolerance(5e-6, 1e-6, "as of `attention`", tipped=2.0**-9),
    _selected_latent_attention_cost,
    shape=_selected_latent_attention_shape,
)
def selected_latent_attention(
    queries: Floats,
    entries: StreamPages,
    value_size: int,
    rows: PagedRows,
    selected: Integers,
    scale: float,
) -> Floats:
    """`latent_attention` where each row sees its selected positions alone.

    DeepSeek-V3.2 (arXiv:2512.02556), equation 2: u_t = Attn(h_t, {c_s | s selected for t}). The
    softmax runs over the selected positions; all others count for nothing.

    Args:
        queries: float32 [rows, heads, size].
        entries: stream pages [pages, page_tokens, size]; the rows' own have been written already.
        value_size: at most size.
        rows: where each row's sequence lies.
        selected: int32 [rows, most] as `select_entries` gives it; at least one of each row.
        scale: factor of the scores.

    Returns:
        float32 [rows, heads, value_size]; scores and sums in float64.
    """
    return attend_selected(queries, entries, value_size, rows, selected, scale, "none")


def attend_selected(
    queries: Floats,
    entries: StreamPages,
    value_size: int,
    rows: PagedRows,
    selected: Integers,
    scale: float,
    rounding: Rounding,
) -> Floats:
    """`selected_latent_attention` with the rounding of `ops.attention.attend`."""
    count, heads, size = queries.shape
    rounded = round_activations(queries.reshape(-1, size), rounding)
    queries = rounded.reshape(count, heads, size)
    out = np.empty((count, heads, value_size), np.float32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        if start == stop:
            continue
        seen = entries_seen(entries, rows, sequence)
        for row in range(start, stop):
            chosen = selected[row][selected[row] >= 0]
            key = seen[chosen].astype(np.float64)
            scores = scale * (queries[row].astype(np.float64) @ key.T)
            out[row] = softmax_weights(scores, rounding) @ key[:, :value_size]
    return out
