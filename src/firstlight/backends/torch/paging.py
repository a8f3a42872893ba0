"""The rows of a step on the device: where their entries go, and what their attention reads.

Everything here follows from numbers that lie on the host, so nothing waits for the device; a few
small arrays go there once a step for each group of streams, and are kept with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.torch.deferred_paging import (
    is_deferred,
    most_seen,
    row_positions,
    seen_positions,
)
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows

Made = TypeVar("Made")
_KEPT = "_torch_made"

MOST_ROWS = 256
"""Rows of one sequence that attend together: more would look at more that is hidden from them."""

MOST_SCORES = 1 << 25
"""Scores, over all heads, that are in memory at once."""

_LEAST_STEP = 32


@dataclass(frozen=True, eq=False)
class Reading:
    """Pieces of sequences, each with as many rows and (padded) as many positions to read.

    Attributes:
        rows: int64 [pieces * count]; which rows of the batch these are.
        slots: int64 [pieces, seen]; the entry of each position, counted through all pages. What
            pads a piece is its own last entry again.
        hidden: bool [pieces, count, seen]; what a row must not see.
    """

    count: int
    rows: torch.Tensor
    slots: torch.Tensor
    hidden: torch.Tensor


def page_table(rows: PagedRows, transfer: Transfer) -> torch.Tensor:
    """int32 [sequences, pages] on the device."""
    return kept(rows, ("page table", transfer.device), lambda: transfer.upload(rows.page_table))


def slots(
    table: torch.Tensor, sequence: torch.Tensor, entries: torch.Tensor, page_entries: int
) -> torch.Tensor:
    """int64 [n, m]: entries counted through all pages of a stream.

    Args:
        table: as `page_table` gives it.
        sequence: int64 [n, 1].
        entries: int64 [n, m]; of each sequence its own numbers, each in a page that it has.
        page_entries: entries of a page.
    """
    page = torch.div(entries, page_entries, rounding_mode="floor")
    return table[sequence, page].long() * page_entries + entries % page_entries


def write_slots(rows: PagedRows, transfer: Transfer) -> torch.Tensor:
    """int64 [rows]: the entry of each row, counted through all pages of a stream."""

    def make() -> torch.Tensor:
        if is_deferred(rows):
            return own_slots(rows, row_positions(rows, transfer)[:, None], transfer)[:, 0]
        return transfer.upload(rows.slots(rows.row_sequences(), rows.positions))

    return kept(rows, ("slots", transfer.device), make)


def readings(
    rows: PagedRows, window: int | None, heads: int, transfer: Transfer
) -> tuple[Reading, ...]:
    """What attention with so many heads computes together."""

    def make() -> tuple[Reading, ...]:
        if is_deferred(rows):
            return tuple(_deferred_readings(rows, window, heads, transfer))
        return tuple(
            _reading(rows, group, seen, window, transfer)
            for seen, group in _groups(rows, window, heads)
        )

    return kept(rows, ("readings", transfer.device, window, heads), make)


def _deferred_readings(
    rows: PagedRows, window: int | None, heads: int, transfer: Transfer
) -> Iterator[Reading]:
    seen = padded(most_seen(rows, window))
    positions, hidden = seen_positions(rows, window, seen, transfer)
    found = own_slots(rows, positions, transfer)
    each = torch.arange(len(found), device=transfer.device)
    together = max(1, MOST_SCORES // max(1, heads * seen))
    for start in range(0, len(found), together):
        part = slice(start, start + together)
        yield Reading(1, each[part], found[part], hidden[part, None])


def own_slots(rows: PagedRows, positions: torch.Tensor, transfer: Transfer) -> torch.Tensor:
    """int64 [rows, m]: the slots of as many positions, or entries where `page_tokens` counts those,
    where row r is sequence r's."""
    each = torch.arange(len(positions), device=transfer.device)[:, None]
    return slots(page_table(rows, transfer), each, positions, rows.page_tokens)


@dataclass(frozen=True)
class _Piece:
    """Rows start:stop of the batch, of one sequence, and the positions that they see."""

    sequence: int
    start: int
    count: int
    first: int
    last: int


def _groups(rows: PagedRows, window: int | None, heads: int) -> Iterator[tuple[int, list[_Piece]]]:
    """Pieces that are computed together, and the positions that each is padded to."""
    alike: dict[tuple[int, int], list[_Piece]] = {}
    for piece in _pieces(rows, window, heads):
        seen = padded(piece.last + 1 - piece.first)
        alike.setdefault((piece.count, seen), []).append(piece)
    for (count, seen), pieces in alike.items():
        together = max(1, MOST_SCORES // max(1, heads * count * seen))
        for start in range(0, len(pieces), together):
            yield seen, pieces[start : start + together]


def _pieces(rows: PagedRows, window: int | None, heads: int) -> Iterator[_Piece]:
    for sequence in range(rows.sequences):
        start, stop = (int(bound) for bound in rows.row_starts[sequence : sequence + 2])
        while start < stop:
            position = int(rows.positions[start])
            first = 0 if window is None else max(0, position - window + 1)
            seen = position + 1 - first
            most = max(1, min(MOST_ROWS, MOST_SCORES // (heads * padded(seen + MOST_ROWS))))
            count = min(most, stop - start)
            yield _Piece(sequence, start, count, first, position + count - 1)
            start += count


def padded(seen: int) -> int:
    """So many positions or up to a quarter more: few numbers, so that sequences meet in them,
    and always the same for a row, whatever the batch."""
    step = max(_LEAST_STEP, 1 << max(0, seen.bit_length() - 3))
    return -(-seen // step) * step


def _reading(
    rows: PagedRows,
    pieces: list[_Piece],
    seen: int,
    window: int | None,
    transfer: Transfer,
) -> Reading:
    count = pieces[0].count
    numbers: NDArray[np.int64] = np.array(
        [(piece.sequence, piece.start, piece.first, piece.last) for piece in pieces], np.int64
    )
    sequence, start, first, last = transfer.upload(numbers.T.copy()).unsqueeze(2).unbind(0)
    device = transfer.device
    position = first + torch.arange(seen, device=device)
    held = torch.minimum(position, last)
    found = slots(page_table(rows, transfer), sequence, held, rows.page_tokens)
    each = torch.arange(count, device=device)
    row_position = (last - (count - 1) + each)[:, :, None]
    hidden = position[:, None] > row_position
    if window is not None:
        hidden = hidden | (position[:, None] <= row_position - window)
    return Reading(count, (start + each).reshape(-1), found, hidden)


def kept(rows: PagedRows, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
    """Made once for these rows, and kept among their attributes."""
    made: dict[tuple[object, ...], Made] = rows.__dict__.setdefault(_KEPT, {})
    if key not in made:
        made[key] = make()
    return made[key]
