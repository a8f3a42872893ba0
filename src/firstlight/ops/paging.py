"""Which sequence and position each row of a batch belongs to, and where its state lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]


def completing(positions: Integers, stride: int) -> NDArray[np.intp]:
    """Which of the positions complete a run of `stride`: stride - 1, 2 * stride - 1 and so on."""
    return np.flatnonzero((positions + 1) % stride == 0)


@dataclass(frozen=True, eq=False)
class PagedRows:
    """The rows of one step, as one group of streams (same stride, same window) sees them.

    All arrays are int32, C-contiguous and on the host; a backend that needs them elsewhere
    copies them once per object.

    Attributes:
        row_starts: [sequences + 1]; rows row_starts[s]:row_starts[s + 1] belong to sequence s.
        positions: [rows]; within a sequence consecutive and rising by one.
        page_table: [sequences, pages]; page_table[s, k] is the page that holds positions
            k * page_tokens to (k + 1) * page_tokens - 1 of sequence s, or -1 where there is none
            (not yet written, or gone out of the window).
        page_tokens: token positions per page.
    """

    row_starts: Integers
    positions: Integers
    page_table: Integers
    page_tokens: int

    @property
    def sequences(self) -> int:
        return len(self.row_starts) - 1

    @property
    def known(self) -> bool:
        """Whether positions and pages can be looked at. They cannot while a backend records a step
        that it will replay for others (`Ops.replayer`): then arrays stand for what is to come,
        shapes are known, and every sequence has one row."""
        return isinstance(self.positions, np.ndarray)

    @property
    def most_positions(self) -> int:
        """So many the page table has room for; no position reaches it."""
        return int(self.page_table.shape[1]) * self.page_tokens

    def part(self, chosen: NDArray[np.bool_]) -> PagedRows:
        """The same of some rows alone; of each sequence those that follow one another.

        Args:
            chosen: [rows].
        """
        before = np.concatenate([[0], np.cumsum(chosen)])
        return PagedRows(
            before[self.row_starts].astype(np.int32),
            np.ascontiguousarray(self.positions[chosen]),
            self.page_table,
            self.page_tokens,
        )

    def row_sequences(self) -> Integers:
        """[rows]: the sequence that each row belongs to."""
        return np.repeat(
            np.arange(self.sequences, dtype=np.int32), np.diff(self.row_starts)
        ).astype(np.int32)

    def slots(self, sequences: NDArray[Any], places: NDArray[Any]) -> NDArray[np.int64]:
        """Where entries lie, counted through all pages of a stream; below zero where a sequence has
        no page for one.

        Args:
            sequences: of each place; its shape broadcasts to that of `places`.
            places: positions, or numbers of entries where `page_tokens` counts entries.
        """
        page = self.page_table[sequences, places // self.page_tokens].astype(np.int64)
        slots: NDArray[np.int64] = page * self.page_tokens + places % self.page_tokens
        return slots

    def completing(self, stride: int) -> NDArray[np.intp]:
        """The rows that complete a run of `stride` positions."""
        return completing(self.positions, stride)

    def runs(self, stride: int) -> PagedRows:
        """The runs of `stride` positions that rows complete, as rows of a stream with one entry for
        each run. Their positions are numbers of runs.

        Of rows that are not known yet, the runs that they are in: what is made of one before it is
        complete nobody sees, and the row that completes it makes it again.

        Args:
            stride: divides page_tokens.
        """
        if not self.known:
            numbers = self.positions // stride
            return PagedRows(self.row_starts, numbers, self.page_table, self.page_tokens // stride)
        rows = self.completing(stride)
        starts = np.searchsorted(rows, self.row_starts).astype(np.int32)
        numbers = (self.positions[rows] // stride).astype(np.int32)
        return PagedRows(starts, numbers, self.page_table, self.page_tokens // stride)
