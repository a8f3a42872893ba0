"""The rows of a step that are computed one by one: where they are, and in which form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from firstlight.backends.torch.deferred_paging import is_deferred, most_seen, row_positions
from firstlight.backends.torch.paging import kept
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.query_tiles import sequences_of
from firstlight.ops.paging import PagedRows


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one form.

    Attributes:
        numbers: int32 [n] on the device; which rows of the step these are.
        last: no position of theirs is above it.
    """

    numbers: torch.Tensor
    last: int


def row_places(rows: PagedRows, transfer: Transfer) -> torch.Tensor:
    """int32 [rows, 2] on the device: each row's sequence and position."""

    def make() -> torch.Tensor:
        if is_deferred(rows):
            positions = row_positions(rows, transfer)
            each = torch.arange(len(positions), device=positions.device)
            return torch.stack((each, positions), 1).int()
        return transfer.upload(np.stack((rows.row_sequences(), rows.positions), 1))

    return kept(rows, ("row places", transfer.device), make)


def rows_of_form(rows: PagedRows, few: bool, transfer: Transfer) -> Rows | None:
    """Rows of the sequences with few rows in the step, or with many, if there are any.

    Of a sequence with many those with most to read go first, so that none is left for the end.
    """

    def make() -> Rows | None:
        chosen = sequences_of(rows, few)
        if not len(chosen):
            return None
        if is_deferred(rows):
            each = torch.arange(len(rows.positions), dtype=torch.int32, device=transfer.device)
            return Rows(each, most_seen(rows, None) - 1)
        numbers = np.flatnonzero(np.isin(rows.row_sequences(), chosen))
        positions = rows.positions[numbers]
        if not few:
            numbers = numbers[np.argsort(-positions, kind="stable")]
        return Rows(transfer.upload(numbers.astype(np.int32)), int(positions.max()))

    return kept(rows, ("rows of form", transfer.device, few), make)


def rows_beyond(
    rows: PagedRows, stride: int, count: int, transfer: Transfer
) -> tuple[Rows, torch.Tensor] | None:
    """The rows that see more than so many complete runs, if there are any: these, and their numbers
    as int64. Of a step that is being recorded all rows, where one could."""

    def make() -> tuple[Rows, torch.Tensor] | None:
        if is_deferred(rows):
            last = most_seen(rows, None) - 1
            each = torch.arange(len(rows.positions), device=transfer.device)
            return (Rows(each.int(), last), each) if (last + 1) // stride > count else None
        numbers = np.flatnonzero((rows.positions + 1) // stride > count)
        if not len(numbers):
            return None
        found = transfer.upload(numbers.astype(np.int64))
        return Rows(found.int(), int(rows.positions[numbers].max())), found

    return kept(rows, ("rows beyond", transfer.device, stride, count), make)
