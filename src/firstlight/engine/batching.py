"""From the slices of a step to what the decoder takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.scheduler import Slice
from firstlight.model.batch import Batch, Integers

# Logits of at most so many rows are in memory at once: a large vocabulary has a megabyte a row.
HEAD_ROWS = 32


def make_batch(slices: list[Slice], pages: PageAllocator) -> Batch:
    """The rows of a step; `wanted` is empty, see `Rows`."""
    # Lists first: for the few rows of a step that decodes, arithmetic on arrays takes longer.
    token_ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    starts = [0]
    for part in slices:
        sequence, tokens = part.sequence, part.tokens
        floor, stop = sequence.length_floor, part.start + tokens
        if tokens == 1:
            token_ids.append(sequence.token_ids[part.start])
            positions.append(part.start)
            lengths.append(floor if floor > stop else stop)
            starts.append(len(positions))
            continue
        token_ids += sequence.token_ids[part.start : part.stop]
        token_ids += part.proposal
        positions += range(part.start, stop)
        if floor >= stop:
            lengths += [floor] * tokens
        else:
            lengths += (max(floor, length) for length in range(part.start + 1, stop + 1))
        starts.append(len(positions))
    tables = [part.sequence.pages for part in slices]
    return Batch(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        lengths=np.array(lengths, np.int32),
        row_starts=np.array(starts, np.int32),
        page_tables=tuple(pages.table_array(tables, group) for group in range(len(pages.groups))),
        page_tokens=pages.page_tokens,
        wanted=np.empty(0, np.int32),
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a batch whose logits are wanted for one slice.

    Attributes:
        first, count: the rows; none where only state was to be computed.
        prompt: so many of them, from the first on, are logits of the prompt; 0 where none are.
        position: of the first row's token.
        chooses: so many of them, up to the last, are to choose tokens from.
    """

    part: Slice
    first: int
    count: int
    prompt: int
    position: int
    chooses: int


def wanted_rows(slices: list[Slice]) -> Iterator[list[Rows]]:
    """What is wanted for each slice, in order, in runs of at most HEAD_ROWS rows together, unless
    one slice alone has more to choose tokens from."""
    run: list[Rows] = []
    size = 0
    for rows in _all_rows(slices):
        if run and size + rows.count > HEAD_ROWS:
            yield run
            run, size = [], 0
        run.append(rows)
        size += rows.count
    if run:
        yield run


def row_numbers(run: list[Rows]) -> Integers:
    """The rows of a run, int32."""
    numbers: list[int] = []
    for rows in run:
        numbers += range(rows.first, rows.first + rows.count)
    return np.array(numbers, np.int32)


def _all_rows(slices: list[Slice]) -> Iterator[Rows]:
    row = 0
    for part in slices:
        sequence, tokens = part.sequence, part.tokens
        end, chooses = row + tokens, 0
        if part.completes and sequence.stop.max_tokens != 0:
            chooses = 1 + len(part.proposal)
        if sequence.receive_prompt_logits is not None:
            first = max(part.start, sequence.prompt_logits_given)
            last = min(part.stop, len(sequence.prompt_ids))
            for start in range(first, last, HEAD_ROWS):
                count = min(HEAD_ROWS, last - start)
                yield Rows(part, row + start - part.start, count, count, start, 0)
        yield Rows(part, end - chooses, chooses, 0, part.start + tokens - chooses, chooses)
        row = end
