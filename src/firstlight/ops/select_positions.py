"""The choice of the positions that a row attends to, by scores that are cheaper than attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, read_entries
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows

Integers = NDArray[np.int32]


def entries_seen(entries: StreamPages, rows: PagedRows, sequence: int) -> Floats:
    """Entries of one sequence up to its last row's position, float32 [positions, *entry]."""
    positions = np.arange(int(rows.positions[rows.row_starts[sequence + 1] - 1]) + 1)
    page = rows.page_table[sequence, positions // rows.page_tokens]
    return read_entries(entries[page, positions % rows.page_tokens])


def _select_positions_cost(
    queries: Floats, weights: Floats, keys: StreamPages, rows: PagedRows, top_k: int
) -> Cost:
    count, heads, size = queries.shape
    seen = rows.positions.astype(np.int64) + 1
    # Keys are read once per sequence, for its last row, whose view covers the others'.
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    read = int(seen[ends].sum()) * size * keys.dtype.itemsize
    given = 4 * count * (heads * (size + 1) + top_k)
    return Cost(read + given, int(seen.sum()) * heads * (2 * size + 3))


@define(
    Tolerance(
        relative=0.0,
        absolute=0.0,
        reason="positions; those of the cases are chosen by scores that float32 holds exactly",
    ),
    _select_positions_cost,
)
def select_positions(
    queries: Floats, weights: Floats, keys: StreamPages, rows: PagedRows, top_k: int
) -> Integers:
    """For each row the positions of the `top_k` largest index scores, among those that it sees.

    DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv:2512.02556), equation 1, the lightning indexer:

        I_t,s = sum over heads j of w_t,j * ReLU(q_t,j . k_s)

    Of equal scores the lower position counts as the larger one, and a row's scores are those of
    its own `position + 1` keys, multiplied in a shape that depends on nothing else: so the choice
    is the same in every batch, chunk and order of computation. A row that sees at most `top_k`
    positions chooses them all.

    Args:
        queries: float32 [rows, heads, size].
        weights: float32 [rows, heads]; positive factors common to all scores may be left out.
        keys: stream pages [pages, page_tokens, size]; the rows' own have been written already.
        rows: where each row's sequence lies.
        top_k: how many positions, at least one.

    Returns:
        int32 [rows, top_k], rising, with -1 at the end where fewer are seen. Scores are summed in
        float64 and compared in float32.
    """
    chosen = np.full((len(queries), top_k), -1, np.int32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        if start == stop:
            continue
        seen: NDArray[Any] | None = None
        for row in range(start, stop):
            count = int(rows.positions[row]) + 1
            if count <= top_k:
                chosen[row, :count] = np.arange(count)
                continue
            if seen is None:
                seen = entries_seen(keys, rows, sequence).astype(np.float64)
            each = np.maximum(queries[row].astype(np.float64) @ seen[:count].T, 0.0)
            scores = (weights[row].astype(np.float64) @ each).astype(np.float32)
            chosen[row] = np.sort(np.argsort(-scores, kind="stable")[:top_k])
    return chosen
