"""Scales, and zeros, of groups of columns, as quantised safetensors checkpoints have them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats, Format


@dataclass(frozen=True, eq=False)
class GroupScales:
    """value = (code - zero) * scale, where each row has one scale and zero for a group of columns.

    Each of the two operations is one of float32. Codes of 8 bits less a zero are whole and small,
    so with scales of 16 bits nothing is rounded at all.

    Attributes:
        data: uint8 [rows, groups * format.block_bytes], the scales as they are stored.
        format: of the scales, with single values ("f16", "f8_e4m3").
        group: columns of a group; the last may be cut short.
        zero: of every group, where `zeros` is None.
        zeros: int16 [rows, groups].
        group_of: intp [columns], the group of each column, where groups are not neighbours.
        factor: float32 that every scale is multiplied by first, with one rounding.
        divisor: float32 that every scale is divided by first, with one rounding.
        first_row: of the weight among the rows that `data` and `zeros` are for.
    """

    data: Bytes
    format: Format
    group: int
    zero: int = 0
    zeros: NDArray[np.int16] | None = None
    group_of: NDArray[np.intp] | None = None
    factor: np.float32 | None = None
    divisor: np.float32 | None = None
    first_row: int = 0

    @property
    def groups(self) -> int:
        return int(self.data.shape[1]) // self.format.block_bytes

    def scales(self, rows: NDArray[np.intp]) -> Floats:
        """Of those rows: float32 [len(rows), groups]."""
        scales = self.format.decode(self.data[self.first_row + rows])
        if self.factor is not None:
            scales = scales * self.factor
        if self.divisor is not None:
            scales = scales / self.divisor
        return scales

    def multiply(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        """The weight's values [len(rows), columns] of the codes of those rows."""
        columns = values.shape[1]
        group_of = self.group_of
        if group_of is None:
            group_of = np.arange(columns) // self.group
        out = values
        if self.zeros is not None:
            zeros = self.zeros[self.first_row + rows].astype(np.float32)
            out = values - zeros[:, group_of]
        elif self.zero:
            out = values - np.float32(self.zero)
        return out * self.scales(rows)[:, group_of]

    def from_row(self, start: int) -> GroupScales:
        return replace(self, first_row=self.first_row + start)

    @property
    def column_unit(self) -> int:
        return self.group if self.group_of is None else 1

    def of_columns(self, start: int, stop: int) -> GroupScales:
        if self.group_of is not None:
            return replace(self, group_of=self.group_of[start:stop])
        first, end = start // self.group, -(-stop // self.group)
        size = self.format.block_bytes
        zeros = None if self.zeros is None else np.ascontiguousarray(self.zeros[:, first:end])
        data = np.ascontiguousarray(self.data[:, first * size : end * size])
        return replace(self, data=data, zeros=zeros)

    def check(self, label: str, rows: int, columns: int) -> None:
        groups = -(-columns // self.group)
        few = len(self.data) < self.first_row + rows
        if self.group_of is not None:
            wrong = self.group_of.shape != (columns,) or self.group_of.max() >= self.groups
        else:
            wrong = self.groups != groups
        if few or wrong:
            raise FormatError(
                label,
                f"its scales are {[len(self.data), self.groups]}, one for each group of "
                f"{self.group} columns",
                "Give one scale for each group",
            )
