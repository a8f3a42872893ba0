"""Steps that only decode, in a form that a device can record once and replay.

They come in few shapes: rows and page tables are filled up to the next of a few numbers. What fills
up is a row that is there already, once more: it writes the same entries to the same place.

Every row is a sequence of its own here, a guess too: all entries of a step are written before any
row reads, so a guess finds those of the rows before it through the page table that it shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from firstlight.engine.pages import NO_PAGE, PageAllocator
from firstlight.engine.scheduler import Slice
from firstlight.engine.sequence import Sequence
from firstlight.engine.state_size import page_bytes
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.ops import Tensor

MOST_ROWS = 128
"""Logits of all rows are in memory at once: with a large vocabulary a megabyte a row."""

_WEIGHTS_OF_GUESSES = 8
"""A guess that is a sequence of its own reads the state of its sequence once more. Where guesses
read more bytes than this part of the weights, the step is computed as any other: state is read once
then."""


class DecodeSteps:
    """The decode steps of one engine; `possible` where its device replays."""

    def __init__(
        self, decoder: Decoder, state: State, pages: PageAllocator, state_dtype: str
    ) -> None:
        self._decoder = decoder
        self._pages = pages
        self._replay = None
        # What is more than a decoder does more in a step than ask its device for ops.
        if type(decoder) is Decoder and decoder.after_pass is None:
            compute = partial(_logits, decoder, state, pages.page_tokens)
            self._replay = decoder.ops.replayer(compute)
        # Of each group the bytes of a page, and how many positions a row sees.
        self._read = [
            (page_bytes(decoder.streams, group, state_dtype, pages.page_tokens), group.window)
            for group in decoder.groups
        ]

    def logits(self, slices: list[Slice]) -> Tensor | None:
        """Logits of each slice's rows, float32 [at least as many rows, vocabulary], valid up to the
        next step; None where the step is to be computed as any other."""
        if self._replay is None or not self._replay.possible or not _only_decodes(slices):
            return None
        read_again = sum(map(self._bytes_of_guesses, slices))
        if read_again and read_again * _WEIGHTS_OF_GUESSES > self._decoder.weights.nbytes:
            return None
        return self._replay(*self._arrays(slices))

    def _bytes_of_guesses(self, part: Slice) -> int:
        """What a slice's guesses read of the state."""
        guesses, tokens = len(part.proposal), self._pages.page_tokens
        if not guesses:
            return 0
        return guesses * sum(
            size * (part.stop if window is None else min(part.stop, window)) // tokens
            for size, window in self._read
        )

    def _arrays(self, slices: list[Slice]) -> list[np.ndarray[Any, Any]]:
        """What `_logits` takes, filled up."""
        rows = list(chain.from_iterable(map(_rows, slices)))
        # What a row attends to is read again with it.
        rows += [min(rows, key=lambda row: row[1])] * (padded_rows(len(rows)) - len(rows))
        positions = np.array([position for _, position, _ in rows], np.int32)
        floors = np.array([sequence.length_floor for sequence, _, _ in rows], np.int32)
        lengths = np.maximum(floors, positions + 1)
        tokens = np.array([token for _, _, token in rows], np.int32)
        arrays: list[np.ndarray[Any, Any]] = [tokens, positions]
        tables = [sequence.pages for sequence, _, _ in rows]
        for group in range(len(self._pages.groups)):
            table = self._pages.table_array(tables, group)
            more = padded_pages(table.shape[1]) - table.shape[1]
            arrays.append(np.pad(table, ((0, 0), (0, more)), constant_values=NO_PAGE))
        arrays += (table.values(positions, lengths) for table in self._decoder.angle_tables)
        return arrays


def _logits(
    decoder: Decoder,
    state: State,
    page_tokens: int,
    token_ids: Any,
    positions: Any,
    *more: Any,
) -> Tensor:
    """Logits of every row. All arrays may be deferred: nothing here looks into them."""
    count, groups = len(positions), len(decoder.groups)
    batch = Batch(
        token_ids=token_ids,
        positions=positions,
        lengths=positions,
        row_starts=np.arange(count + 1, dtype=np.int32),
        page_tables=more[:groups],
        page_tokens=page_tokens,
        wanted=np.arange(count, dtype=np.int32),
        angles=dict(zip(decoder.angle_tables, more[groups:], strict=True)),
    )
    return decoder.step(batch, state)


def _rows(part: Slice) -> Iterator[tuple[Sequence, int, int]]:
    """(its sequence, position, token) of each row of a slice."""
    sequence = part.sequence
    tokens = (*sequence.token_ids[part.start : part.stop], *part.proposal)
    for position, token in enumerate(tokens, part.start):
        yield sequence, position, token


def _only_decodes(slices: list[Slice]) -> bool:
    """Whether each slice is one token that the next one is chosen after, with guesses of those or
    not, and no more is wanted."""
    return sum(part.tokens for part in slices) <= MOST_ROWS and all(
        part.stop - part.start == 1
        and part.completes
        and part.sequence.stop.max_tokens != 0
        and (part.sequence.receive_prompt_logits is None or part.sequence.output_ids)
        for part in slices
    )


def padded_rows(count: int) -> int:
    """1, 2, 4, 8, 16 and then multiples of 8, up to 64; behind that multiples of 16."""
    if count <= 16:
        return 1 << (count - 1).bit_length()
    step = 8 if count <= 64 else 16
    return -(-count // step) * step


def padded_pages(count: int) -> int:
    """Two numbers for each doubling: 1, 2, 3, 4, 6, 8, 12, 16 and so on."""
    if count <= 1:
        return 1
    power = 1 << (count - 1).bit_length()
    return power if count > power * 3 // 4 else power * 3 // 4
