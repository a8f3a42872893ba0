"""What rows read of streams with one entry for each run of positions, or of chosen entries alone.

As in paging.py, everything but the choice itself follows from numbers that lie on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.torch.deferred_paging import (
    is_deferred,
    most_seen,
    row_positions,
    seen_positions,
)
from firstlight.backends.torch.paging import (
    MOST_ROWS,
    MOST_SCORES,
    kept,
    own_slots,
    padded,
    page_table,
    slots,
)
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows


@dataclass(frozen=True, eq=False)
class RunReading:
    """Pieces of sequences, and what each sees: positions near by, and complete runs.

    Attributes:
        rows: int64 [pieces * count]; which rows of the batch these are.
        near: int64 [pieces, positions]; the entry of each position, counted through all pages.
        far: int64 [pieces, runs]; of each run. What pads a piece is its own last entry again.
        hidden: bool [pieces, count, positions + runs]; what a row must not see.
    """

    count: int
    rows: torch.Tensor
    near: torch.Tensor
    far: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True, eq=False)
class ChosenReading:
    """Rows that each see positions near by, and about as many chosen entries.

    Attributes:
        rows: int64 [n]; which rows of the batch these are.
        near: int64 [n, positions], as of a RunReading.
        hidden: bool [n, positions].
        table: int32 [sequences, pages]; the page table, for the chosen entries.
        sequence: int64 [n, 1]; of each row.
        page_entries: entries of one of these pages.
        most: so many of the chosen entries are looked at; no row of these has more.
    """

    rows: torch.Tensor
    near: torch.Tensor
    hidden: torch.Tensor
    table: torch.Tensor
    sequence: torch.Tensor
    page_entries: int
    most: int

    def far(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the choice int32 [rows of the batch, k], -1 for none: (int64 [n, most], the chosen
        entries counted through all pages; bool [n, most], where there is none)."""
        numbers = chosen.index_select(0, self.rows)[:, : self.most].long()
        none = numbers < 0
        if self.most:
            # A row's first instead, which is its own; every row here has one, unless its scores
            # were no numbers.
            numbers = torch.where(none, numbers[:, :1], numbers).clamp(min=0)
        found = slots(self.table, self.sequence, numbers, self.page_entries)
        return found.clamp(min=0), none


@dataclass(frozen=True)
class Near:
    """The stream of positions near by: its rows, and how many positions a row sees of it."""

    rows: PagedRows
    window: int

    def first(self, position: int) -> int:
        """The first position that a row at `position` sees."""
        return max(0, position - self.window + 1)


def runs_seen(rows: PagedRows, stride: int, transfer: Transfer) -> torch.Tensor:
    """int32 [rows] on the device: the complete runs that each row sees."""

    def make() -> torch.Tensor:
        if is_deferred(rows):
            return torch.floor_divide(row_positions(rows, transfer) + 1, stride).int()
        return transfer.upload((rows.positions + 1) // stride)

    return kept(rows, ("runs seen", transfer.device, stride), make)


def run_readings(
    rows: PagedRows,
    stride: int,
    heads: int,
    transfer: Transfer,
    near: Near | None = None,
    beyond: int = -1,
) -> Iterable[RunReading]:
    """What is computed together of rows that see all complete runs; to be gone through once.

    Args:
        rows: in the stream of runs.
        heads: as many scores for each row and entry.
        near: None: nothing near by is seen.
        beyond: only rows that see more complete runs than this.
    """
    key = transfer.device, stride, heads, near, beyond
    if is_deferred(rows):
        found = _deferred_run_readings(rows, stride, heads, transfer, near, beyond)
        return kept(rows, ("runs", *key), lambda: tuple(found))

    def make() -> Iterator[RunReading]:
        for group in groups:
            yield _run_reading(group, rows, stride, near, transfer)

    groups = kept(rows, ("groups", *key), lambda: _groups(rows, stride, heads, near, beyond))
    # Of very many entries each layer makes them anew, for they would take much of the memory.
    if sum(len(group) * group[0].count * group[0].seen for group in groups) > MOST_SCORES:
        return make()
    return kept(rows, ("runs", *key), lambda: tuple(make()))


def chosen_readings(
    rows: PagedRows, stride: int, top_k: int, width: int, transfer: Transfer, near: Near | None
) -> tuple[ChosenReading, ...]:
    """What is computed together of rows that see at most `top_k` entries of runs.

    Args:
        rows, stride, near: as of `run_readings`.
        width: values in memory for each row and entry: of an entry, or scores of all heads.
    """

    def make() -> tuple[ChosenReading, ...]:
        find = _deferred_chosen_readings if is_deferred(rows) else _chosen_readings
        return tuple(find(rows, stride, top_k, width, transfer, near))

    return kept(rows, ("chosen", transfer.device, stride, top_k, width, near), make)


# Pieces -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Rows start:start + count of the batch, of one sequence; the positions near by that they see,
    how many runs their last one sees, and what both are padded to."""

    sequence: int
    start: int
    count: int
    first: int
    last: int
    runs: int
    positions: int

    @property
    def seen(self) -> int:
        return self.positions + padded(self.runs)


def _pieces(
    rows: PagedRows, stride: int, heads: int, near: Near | None, beyond: int
) -> Iterator[_Piece]:
    for sequence in range(rows.sequences):
        start, stop = (int(bound) for bound in rows.row_starts[sequence : sequence + 2])
        if start < stop:
            least = stride * (beyond + 1) - 1
            start += max(0, least - int(rows.positions[start]))
        while start < stop:
            position = int(rows.positions[start])
            first = position if near is None else near.first(position)
            seen = 0 if near is None else padded(position + MOST_ROWS - first)
            seen += padded((position + MOST_ROWS) // stride)
            most = max(1, min(MOST_ROWS, MOST_SCORES // (heads * max(1, seen))))
            count = min(most, stop - start)
            last = position + count - 1
            positions = 0 if near is None else padded(last + 1 - first)
            yield _Piece(sequence, start, count, first, last, (last + 1) // stride, positions)
            start += count


def _groups(
    rows: PagedRows, stride: int, heads: int, near: Near | None, beyond: int
) -> list[list[_Piece]]:
    """Pieces that are computed together: alike in rows, and in what they are padded to."""
    alike: dict[tuple[int, int, int], list[_Piece]] = {}
    for piece in _pieces(rows, stride, heads, near, beyond):
        alike.setdefault((piece.count, piece.positions, padded(piece.runs)), []).append(piece)
    found = []
    for (count, *_), pieces in alike.items():
        together = max(1, MOST_SCORES // max(1, heads * count * pieces[0].seen))
        found += [pieces[start : start + together] for start in range(0, len(pieces), together)]
    return found


def _run_reading(
    pieces: list[_Piece], rows: PagedRows, stride: int, near: Near | None, transfer: Transfer
) -> RunReading:
    count, device = pieces[0].count, transfer.device
    numbers: NDArray[np.int64] = np.array(
        [(p.sequence, p.start, p.first, p.last, p.runs) for p in pieces], np.int64
    )
    sequence, start, first, last, runs = transfer.upload(numbers.T.copy()).unsqueeze(2).unbind(0)
    each = torch.arange(count, device=device)
    row_position = (last - (count - 1) + each)[:, :, None]
    far_count = padded(pieces[0].runs)
    run = torch.arange(far_count, device=device)
    page_runs = rows.page_tokens // stride
    held = torch.minimum(run, (runs - 1).clamp(min=0))
    far = slots(page_table(rows, transfer), sequence, held, page_runs)
    seen = torch.div(row_position + 1, stride, rounding_mode="floor")
    hidden = run >= seen
    if near is None:
        nothing = torch.empty((len(pieces), 0), dtype=torch.int64, device=device)
        return RunReading(count, (start + each).reshape(-1), nothing, far, hidden)
    position = first + torch.arange(pieces[0].positions, device=device)
    held = torch.minimum(position, last)
    found = slots(page_table(near.rows, transfer), sequence, held, near.rows.page_tokens)
    unseen = (position[:, None] > row_position) | (position[:, None] <= row_position - near.window)
    hidden = torch.cat((unseen, hidden.expand(len(pieces), count, far_count)), 2)
    return RunReading(count, (start + each).reshape(-1), found, far, hidden)


# Chosen entries -----------------------------------------------------------------------------------


def _chosen_readings(
    rows: PagedRows, stride: int, top_k: int, width: int, transfer: Transfer, near: Near | None
) -> Iterator[ChosenReading]:
    positions = rows.positions.astype(np.int64)
    window = 0 if near is None else near.window
    # What a row is padded to follows from the row alone.
    runs = [min(padded(int(each)), top_k) for each in np.minimum((positions + 1) // stride, top_k)]
    sizes = [
        (each, min(padded(int(p) + 1), window)) for each, p in zip(runs, positions, strict=True)
    ]
    for size in dict.fromkeys(sizes):
        alike = np.array([row for row, each in enumerate(sizes) if each == size], np.int64)
        together = max(1, MOST_SCORES // max(1, width * sum(size)))
        for start in range(0, len(alike), together):
            taken = alike[start : start + together]
            numbers = np.stack((taken, rows.row_sequences()[taken], rows.positions[taken]))
            places = transfer.upload(numbers.astype(np.int64))
            yield _chosen_reading(rows, places, stride, *size, transfer, near)


def _chosen_reading(
    rows: PagedRows,
    places: torch.Tensor,
    stride: int,
    most: int,
    near_count: int,
    transfer: Transfer,
    near: Near | None,
) -> ChosenReading:
    """Of rows of the batch, int64 [3, n]: these, their sequences and positions."""
    device = transfer.device
    row, sequence, last = places.unbind(0)
    sequence = sequence[:, None]
    found = torch.empty((len(row), 0), dtype=torch.int64, device=device)
    hidden = torch.empty((len(row), 0), dtype=torch.bool, device=device)
    if near is not None:
        position = last[:, None] - torch.arange(near_count, device=device)
        hidden = position < 0
        table = page_table(near.rows, transfer)
        found = slots(table, sequence, position.clamp(min=0), near.rows.page_tokens)
    table = page_table(rows, transfer)
    return ChosenReading(row, found, hidden, table, sequence, rows.page_tokens // stride, most)


# Rows that are not known yet ----------------------------------------------------------------------


def _deferred_run_readings(
    rows: PagedRows, stride: int, heads: int, transfer: Transfer, near: Near | None, beyond: int
) -> Iterator[RunReading]:
    """Every row by itself, as far as the page table has room."""
    most, device = rows.most_positions // stride, transfer.device
    if most <= beyond:
        return
    seen = runs_seen(rows, stride, transfer).long()[:, None]
    count = len(seen)
    run = torch.arange(padded(most), device=device)
    each = torch.arange(count, device=device)
    held = torch.minimum(run, (seen - 1).clamp(min=0))
    far = slots(page_table(rows, transfer), each[:, None], held, rows.page_tokens // stride)
    hidden = run >= seen
    found = torch.empty((count, 0), dtype=torch.int64, device=device)
    if near is not None:
        positions = padded(most_seen(near.rows, near.window))
        position, unseen = seen_positions(near.rows, near.window, positions, transfer)
        found = own_slots(near.rows, position, transfer)
        hidden = torch.cat((unseen, hidden), 1)
    together = max(1, MOST_SCORES // max(1, heads * hidden.shape[1]))
    for start in range(0, count, together):
        part = slice(start, start + together)
        yield RunReading(1, each[part], found[part], far[part], hidden[part, None])


def _deferred_chosen_readings(
    rows: PagedRows, stride: int, top_k: int, width: int, transfer: Transfer, near: Near | None
) -> Iterator[ChosenReading]:
    """Every row by itself, of as much as one could see."""
    most = min(padded(rows.most_positions // stride), top_k)
    near_count = 0 if near is None else min(padded(most_seen(near.rows, None)), near.window)
    last = row_positions(rows, transfer)
    each = torch.arange(len(last), device=transfer.device)
    places = torch.stack((each, each, last))
    together = max(1, MOST_SCORES // max(1, width * (most + near_count)))
    for start in range(0, len(last), together):
        some = places[:, start : start + together]
        yield _chosen_reading(rows, some, stride, most, near_count, transfer, near)
