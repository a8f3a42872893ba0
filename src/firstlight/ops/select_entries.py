"""The choice of the entries that a row attends to, by scores that are cheaper than attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, read_entries
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows
from firstlight.ops.shape import Shape, context_range, rows_range

Integers = NDArray[np.int32]


def entries_seen(entries: StreamPages, rows: PagedRows, sequence: int, stride: int = 1) -> Floats:
    """Entries of one sequence up to its last row's position, float32 [entries, *entry]; one for
    each run of `stride` positions that is complete."""
    last = int(rows.positions[rows.row_starts[sequence + 1] - 1])
    runs, page_runs = np.arange((last + 1) // stride), rows.page_tokens // stride
    page = rows.page_table[sequence, runs // page_runs]
    return read_entries(entries[page, runs % page_runs])


def runs_seen(rows: PagedRows, stride: int) -> tuple[int, int]:
    """Complete runs that rows see: of each sequence once, and of all rows together."""
    seen = (rows.positions.astype(np.int64) + 1) // stride
    # What a sequence's last row sees covers what the others do.
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    return int(seen[ends].sum()), int(seen.sum())


def _select_entries_cost(
    queries: Floats,
    weights: Floats,
    keys: StreamPages,
    rows: PagedRows,
    stride: int,
    top_k: int,
) -> Cost:
    count, heads, size = queries.shape
    once, together = runs_seen(rows, stride)
    moved = once * size * keys.dtype.itemsize + 4 * count * (heads * (size + 1) + top_k)
    return Cost(moved, together * heads * (2 * size + 3))


def _select_entries_shape(
    queries: Floats,
    weights: Floats,
    keys: StreamPages,
    rows: PagedRows,
    stride: int,
    top_k: int,
) -> Shape:
    context = rows.page_table.shape[1] * rows.page_tokens
    _, heads, size = queries.shape
    size_of = keys.dtype.itemsize
    return heads, size, size_of, stride, top_k, context_range(context), rows_range(len(queries))


@define(
    Tolerance(
        relative=0.0,
        absolute=0.0,
        reason="numbers of entries; a choice between scores that differ by a float32 rounding may "
        "fall the other way, which cases avoid",
    ),
    _select_entries_cost,
    shape=_select_entries_shape,
)
def select_entries(
    queries: Floats,
    weights: Floats,
    keys: StreamPages,
    rows: PagedRows,
    stride: int,
    top_k: int,
) -> Integers:
    """For each row the entries of the `top_k` largest index scores, among those that it sees.

    The lightning indexer of DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv:2512.02556), equation 1, where
    every position has an entry; and of V4 (its report, equations 16 and 17), where every run of
    positions has one once it is complete:

        I_t,s = sum over heads j of w_t,j * ReLU(q_t,j . k_s)

    Of equal scores the lower entry counts as the larger one, and a row's scores are those of the
    keys that it sees alone, multiplied in a shape that depends on nothing else: so the choice is
    the same in every batch, chunk and order of computation. A row that sees at most `top_k` entries
    chooses them all. DeepSeek's own kernels also turn queries and keys by a Hadamard matrix, which
    changes no product, and round them to 8 bits (V3.2) or 4 (V4).

    Args:
        queries: float32 [rows, heads, size].
        weights: float32 [rows, heads]; positive factors common to all scores may be left out.
        keys: stream pages [pages, page_tokens / stride, size]; the rows' own have been written.
        rows: where each row's sequence lies; its page_tokens are positions.
        stride: positions of a run; 1: each has an entry.
        top_k: how many entries, at least one.

    Returns:
        int32 [rows, top_k], rising, with -1 at the end where fewer are seen. Scores are summed in
        float64 and compared in float32.
    """
    chosen = np.full((len(queries), top_k), -1, np.int32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        seen: NDArray[Any] | None = None
        for row in range(start, stop):
            count = (int(rows.positions[row]) + 1) // stride
            if count <= top_k:
                chosen[row, :count] = np.arange(count)
                continue
            if seen is None:
                seen = entries_seen(keys, rows, sequence, stride).astype(np.float64)
            each = np.maximum(queries[row].astype(np.float64) @ seen[:count].T, 0.0)
            scores = (weights[row].astype(np.float64) @ each).astype(np.float32)
            chosen[row] = np.sort(np.argsort(-scores, kind="stable")[:top_k])
    return chosen
