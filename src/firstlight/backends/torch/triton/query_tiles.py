"""Which queries a program computes together, and in how many parts of the context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.torch.deferred_paging import is_deferred, most_seen, row_positions
from firstlight.backends.torch.paging import kept
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows

FEW_ROWS = 8
"""Sequences with at most so many rows in a step have their context split: those that decode, with
their guesses. There are too few programs otherwise to keep a chip busy."""

LEAST_PART = 256
"""Positions of a part, where MOST_PARTS of them reach. A row's parts hang on its position alone, so
that its sums have one order in every batch."""

MOST_PARTS = 64


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of one form, each of queries of one sequence that read the same entries.

    The queries of a sequence that share a key head are numbered row by row; `size` of them in
    succession make a tile.

    Attributes:
        numbers: int32 [tiles, 6] on the device: the sequence; its first row and how many it has;
            the position of its first row; its first row among those of this form; the tile's first
            query.
        rows: int32 [rows] on the device: those of this form, in order.
        parts: into how many the longest context is split; 1: none is.
    """

    size: int
    numbers: torch.Tensor
    rows: torch.Tensor
    parts: int


def split_tiles(
    rows: PagedRows, window: int | None, group: int, size: int, transfer: Transfer
) -> Tiles | None:
    """Tiles of the sequences with few rows, if there are any; `group` queries a row share a key."""

    def make() -> Tiles | None:
        chosen = sequences_of(rows, few=True)
        if not len(chosen):
            return None
        if is_deferred(rows):
            return _deferred_tiles(
                rows, group, size, _parts(most_seen(rows, None), window), transfer
            )
        last = rows.positions[rows.row_starts[chosen + 1] - 1].astype(np.int64)
        parts = _parts(int(last.max()) + 1, window)
        return _tiles(rows, chosen, group, size, parts, transfer)

    return kept(rows, ("split tiles", transfer.device, window, group, size), make)


def whole_tiles(rows: PagedRows, group: int, size: int, transfer: Transfer) -> Tiles | None:
    """Tiles of the sequences with many rows, if there are any."""

    def make() -> Tiles | None:
        chosen = sequences_of(rows, few=False)
        return _tiles(rows, chosen, group, size, 1, transfer) if len(chosen) else None

    return kept(rows, ("whole tiles", transfer.device, group, size), make)


_LARGEST_BLOCK = 128


def _parts(seen: int, window: int | None) -> int:
    """Into how many parts a context of so many positions is split."""
    if window is not None:
        # A block may begin before the window.
        seen = min(seen, window + FEW_ROWS + _LARGEST_BLOCK)
    parts = min(MOST_PARTS, -(-seen // LEAST_PART))
    # Few numbers of parts, for steps that are recorded once; a part without positions is empty.
    return 1 << (parts - 1).bit_length()


def _deferred_tiles(
    rows: PagedRows, group: int, size: int, parts: int, transfer: Transfer
) -> Tiles:
    """The same as `_tiles` of sequences with a row each, where positions are on the device only."""
    positions = row_positions(rows, transfer)
    count, needed = len(positions), -(-group // size)
    place = torch.arange(count, device=positions.device)
    order = torch.argsort(positions, descending=True, stable=True)
    which = order.repeat_interleave(needed)
    query = torch.arange(0, needed * size, size, device=positions.device).repeat(count)
    ones = torch.ones_like(which)
    columns = (which, which, ones, positions.index_select(0, which), which, query)
    return Tiles(size, torch.stack(columns, 1).int(), place.int(), parts)


def sequences_of(rows: PagedRows, few: bool) -> NDArray[np.intp]:
    """The sequences with few rows in the step, or those with many."""
    counts = np.diff(rows.row_starts)
    return np.flatnonzero((counts > 0) & ((counts <= FEW_ROWS) == few))


def _tiles(
    rows: PagedRows,
    chosen: NDArray[np.intp],
    group: int,
    size: int,
    parts: int,
    transfer: Transfer,
) -> Tiles:
    first = rows.row_starts[chosen]
    counts = rows.row_starts[chosen + 1] - first
    before = np.cumsum(counts) - counts
    needed = -(-counts * group // size)
    which = np.repeat(np.arange(len(chosen)), needed)
    query = size * (np.arange(len(which)) - np.repeat(np.cumsum(needed) - needed, needed))
    columns = (chosen, first, counts, rows.positions[first], before)
    numbers = np.stack([*(each[which] for each in columns), query], axis=1).astype(np.int32)
    # Those with most to read go first, so that none is left for the end.
    seen = numbers[:, 3] + np.minimum((query + size - 1) // group, numbers[:, 2] - 1)
    numbers = np.ascontiguousarray(numbers[np.argsort(-seen, kind="stable")])
    each = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
    return Tiles(size, transfer.upload(numbers), transfer.upload(each.astype(np.int32)), parts)
