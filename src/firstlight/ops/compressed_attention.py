"""Attention over a window and over entries that stand for runs of tokens before it.

DeepSeek-V4's report, section 2.3: of each run of `stride` positions one entry is made, which serves
as key and value. Heavily compressed attention (2.3.2) sees all of them, compressed sparse attention
(2.3.1) those that an indexer chooses. An entry is seen from the position that completes its run.

Every row is computed by itself, and what is summed in which order depends on its position alone: so
a token's bits are the same in a prompt, in a chunk of it, and decoded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.attention import StreamPages, read_entries, weights_beside
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding, round_activations
from firstlight.ops.select_entries import runs_seen
from firstlight.ops.shape import Shape, context_range, rows_range

Integers = NDArray[np.int32]


def _at(pages: StreamPages, rows: PagedRows, sequence: int, places: NDArray[np.intp]) -> Floats:
    """A sequence's entries of a stream at these places, float32 [places, *entry]."""
    size = pages.shape[1]
    return read_entries(pages[rows.page_table[sequence, places // size], places % size])


# Making entries ------------------------------------------------------------------------------


def _pool_runs_cost(
    entries: StreamPages,
    rows: PagedRows,
    stride: int,
    before: StreamPages | None = None,
    before_rows: PagedRows | None = None,
) -> Cost:
    size = entries.shape[-1]
    read = len(rows.completing(stride)) * stride * size * (1 if before is None else 2)
    return Cost(2 * read * entries.dtype.itemsize, 8 * read)


@define(
    Tolerance(4e-6, 1e-7, "a softmax of at most some hundred values, and a sum of their products"),
    _pool_runs_cost,
)
def pool_runs(
    entries: StreamPages,
    rows: PagedRows,
    stride: int,
    before: StreamPages | None = None,
    before_rows: PagedRows | None = None,
) -> Floats:
    """One entry of each run of positions that a row completes: sum_t softmax(gate)_t value_t.

    DeepSeek-V4's report, equations 20 to 23; with `before`, 9 to 12: the softmax is over the run's
    positions and those of the run before it, which have other values and gates for this purpose.
    Every value has its own gate, and so its own softmax. The first run has none before it.

    Args:
        entries: stream pages [pages, page_tokens, 2, size]: of each position values, then gates
            with the bias of their place in the run; the rows' own have been written already.
        rows: where each row's sequence lies.
        stride: positions of a run.
        before: stream pages of that shape, of what a position gives to the next run's entry; None:
            nothing.
        before_rows: the rows in that stream.

    Returns:
        float32 [rows that complete a run, size], in the order of these rows; sums in float64.
    """
    runs = rows.runs(stride)
    out = np.empty((len(runs.positions), entries.shape[-1]), np.float32)
    numbers = zip(runs.row_sequences().tolist(), runs.positions.tolist(), strict=True)
    for index, (sequence, number) in enumerate(numbers):
        places = np.arange(number * stride, (number + 1) * stride)
        found = _at(entries, rows, sequence, places)
        if before is not None and before_rows is not None and number > 0:
            earlier = _at(before, before_rows, sequence, places - stride)
            found = np.concatenate((earlier, found))
        values, gates = found[:, 0].astype(np.float64), found[:, 1].astype(np.float64)
        weights = np.exp(gates - gates.max(axis=0))
        out[index] = (weights * values).sum(axis=0) / weights.sum(axis=0)
    return out


# Attending to them ---------------------------------------------------------------------------


def _compressed_attention_cost(
    queries: Floats,
    keys: StreamPages,
    rows: PagedRows,
    window: int,
    entries: StreamPages,
    entry_rows: PagedRows,
    stride: int,
    chosen: Integers | None,
    scale: float,
    sinks: Floats,
) -> Cost:
    count, heads, size = queries.shape
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    near = np.minimum(rows.positions.astype(np.int64) + 1, window)
    once, together = runs_seen(entry_rows, stride)
    if chosen is not None:
        far = np.minimum((rows.positions.astype(np.int64) + 1) // stride, chosen.shape[1])
        together = int(far.sum())
        once = min(once, together)
    once, together = once + int(near[ends].sum()), together + int(near.sum())
    moved = once * size * keys.dtype.itemsize + 8 * count * heads * size
    return Cost(moved, together * heads * 4 * size)


def _compressed_attention_shape(
    queries: Floats,
    keys: StreamPages,
    rows: PagedRows,
    window: int,
    entries: StreamPages,
    entry_rows: PagedRows,
    stride: int,
    chosen: Integers | None,
    scale: float,
    sinks: Floats,
) -> Shape:
    context = entry_rows.page_table.shape[1] * entry_rows.page_tokens
    _, heads, size = queries.shape
    top_k = 0 if chosen is None else chosen.shape[1]
    return (
        *(heads, size, keys.dtype.itemsize, window, stride, top_k),
        *(context_range(context), rows_range(len(queries))),
    )


@define(
    Tolerance(5e-6, 1e-6, "as of `attention`", tipped=2.0**-9),
    _compressed_attention_cost,
    shape=_compressed_attention_shape,
)
def compressed_attention(
    queries: Floats,
    keys: StreamPages,
    rows: PagedRows,
    window: int,
    entries: StreamPages,
    entry_rows: PagedRows,
    stride: int,
    chosen: Integers | None,
    scale: float,
    sinks: Floats,
) -> Floats:
    """`attention_with_sinks` over the last positions and entries of complete runs, in one softmax.

    DeepSeek-V4's report, equations 18 and 24: multi-query attention (Shazeer 2019,
    arXiv:1911.02150) whose keys are its values too.

    Args:
        queries: float32 [rows, heads, size].
        keys: stream pages [pages, page_tokens, 1, size], of every position; the rows' own have been
            written already.
        rows: where each row's sequence lies in that stream.
        window: a row at position p sees positions above p - window and up to p.
        entries: stream pages [pages, page_tokens / stride, size], of runs.
        entry_rows: the rows in that stream; its page_tokens are positions.
        stride: positions of a run.
        chosen: int32 [rows, k], the runs that each row sees, -1 for none; None: all complete ones.
        scale: factor of the scores.
        sinks: float32 [heads]; see `attention_with_sinks`.

    Returns:
        float32 [rows, heads, size]; scores and sums in float64.
    """
    near, far = (queries, keys, rows, window), (entries, entry_rows, stride, chosen)
    return attend_compressed(*near, *far, scale, sinks, rounding="none")


def attend_compressed(
    queries: Floats,
    keys: StreamPages,
    rows: PagedRows,
    window: int,
    entries: StreamPages,
    entry_rows: PagedRows,
    stride: int,
    chosen: Integers | None,
    scale: float,
    sinks: Floats,
    *,
    rounding: Rounding,
) -> Floats:
    """`compressed_attention` with the rounding of `ops.attention.attend`."""
    count, heads, size = queries.shape
    rounded = round_activations(queries.reshape(-1, size), rounding)
    queries = rounded.reshape(count, heads, size)
    out = np.empty(queries.shape, np.float32)
    sink = sinks.astype(np.float64)[:, None]
    sequences = rows.row_sequences()
    for row, position in enumerate(rows.positions.tolist()):
        sequence = int(sequences[row])
        near = np.arange(max(0, position - window + 1), position + 1)
        far: NDArray[np.intp] = np.arange((position + 1) // stride)
        if chosen is not None:
            far = chosen[row][chosen[row] >= 0].astype(np.intp)
        seen = np.concatenate(
            (_at(keys, rows, sequence, near)[:, 0], _at(entries, entry_rows, sequence, far))
        ).astype(np.float64)
        scores = scale * (queries[row].astype(np.float64) @ seen.T)
        out[row] = weights_beside(scores, sink, rounding) @ seen
    return out
