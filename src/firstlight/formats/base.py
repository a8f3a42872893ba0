"""What a storage format is, and what a weight is.

Every format here lays a matrix out row by row, and a row as blocks: `block_values` consecutive
values in `block_bytes` bytes. An unquantised format has blocks of one value. So a slice of rows
is a slice of bytes, and a memory-mapped file is used where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """One way to store the values of a matrix.

    Attributes:
        name: lower-case name, as GGUF or the field calls it ("bf16", "q4_k").
        block_values: values per block; the last axis of a tensor is a multiple of it.
        block_bytes: bytes per block.
        decode: uint8 [..., blocks * block_bytes] -> float32 [..., blocks * block_values], exact.
            The result may be a read-only view of its argument (f32 is). FormatError if the last
            axis is not whole blocks.
        encode: the inverse with rounding, float32 -> uint8, or None where firstlight only reads.
            FormatError if a block format cannot express the values.
        fit: another encoding with less squared error, which takes longer; no block's is larger than
            that of `encode`. None where `encode` rounds each value to its nearest neighbour anyway.
    """

    name: str
    block_values: int
    block_bytes: int
    decode: Callable[[Bytes], Floats]
    encode: Callable[[Floats], Bytes] | None = None
    fit: Callable[[Floats], Bytes] | None = None

    @property
    def bits_per_value(self) -> float:
        return 8 * self.block_bytes / self.block_values

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` values; FormatError if they do not fill whole blocks."""
        if columns % self.block_values:
            raise FormatError(
                f"{self.name} row of {columns} values",
                f"{self.name} stores values in blocks of {self.block_values}",
                "Choose a format whose block size divides the row",
            )
        return columns // self.block_values * self.block_bytes


class Scales(Protocol):
    """What a format's values are still to be multiplied by; rows are rows of one weight."""

    def multiply(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        """The weight's values [len(rows), columns] of those rows, from what the format decodes."""

    def from_row(self, start: int) -> Scales:
        """Those of the rows from `start` on."""

    @property
    def column_unit(self) -> int:
        """Columns from one place where they can be divided to the next."""

    def of_columns(self, start: int, stop: int) -> Scales:
        """Those of columns start:stop, which divide no block."""

    def check(self, label: str, rows: int, columns: int) -> None:
        """FormatError, with that label, where they are too few for so many rows and columns."""


@dataclass(frozen=True, eq=False)
class BlockScales:
    """Factors of a matrix's values, one for each block of several rows and columns.

    They lie in a tensor of their own, so the matrix stays as it is stored, and rows are still rows.

    Attributes:
        values: float32 [row blocks, column blocks]; the last of each may be cut short.
        rows, columns: of a block.
        first_row: of the weight among the rows that `values` are for.
    """

    values: Floats
    rows: int
    columns: int
    first_row: int = 0

    def multiply(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        """The values [len(rows), columns] of those rows, each rounded once to float32."""
        scales = self.values[(self.first_row + rows) // self.rows]
        out = np.empty_like(values)
        for block in range(scales.shape[1]):
            part = slice(block * self.columns, (block + 1) * self.columns)
            np.multiply(values[:, part], scales[:, block, None], out=out[:, part])
        return out

    def from_row(self, start: int) -> BlockScales:
        return replace(self, first_row=self.first_row + start)

    @property
    def column_unit(self) -> int:
        return self.columns

    def of_columns(self, start: int, stop: int) -> BlockScales:
        first, end = start // self.columns, -(-stop // self.columns)
        return replace(self, values=np.ascontiguousarray(self.values[:, first:end]))

    def check(self, label: str, rows: int, columns: int) -> None:
        last = -(-(self.first_row + rows) // self.rows)
        found, across = self.values.shape
        if found < last or across != -(-columns // self.columns):
            raise FormatError(
                label,
                f"its scales are {list(self.values.shape)}, one for each block of {self.rows} "
                f"by {self.columns}",
                "Give one scale for each block",
            )


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor in its storage format. The last axis holds blocks; earlier axes are rows.

    Attributes:
        format: how the values are stored.
        shape: of the values; a matrix is [rows, columns] and maps columns to rows. A scalar, (),
            is one row of one column.
        data: uint8 [rows, format.row_bytes(columns)], C-contiguous, possibly memory-mapped and
            read-only. Rows are all axes but the last, multiplied; a vector has one row.
        name: the tensor's name in the checkpoint, for messages.
        scales: factors of what the format decodes to; None: there are none.

    Raises:
        FormatError: the data, or the scales, do not have the type and shape stated above.
    """

    format: Format
    shape: tuple[int, ...]
    data: Bytes
    name: str = ""
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.scales is not None:
            label = f"{self.name or 'a weight'} of shape {list(self.shape)}"
            self.scales.check(label, self.rows, self.columns)
        expected = (self.rows, self.format.row_bytes(self.columns))
        if self.data.shape != expected or self.data.dtype != np.uint8:
            raise FormatError(
                f"{self.name or 'a weight'} of shape {list(self.shape)} in {self.format.name}",
                f"data are {self.data.dtype} {list(self.data.shape)}, not uint8 {list(expected)}",
                "Give a tensor's bytes as one row of blocks for each row of values",
            )

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def decode(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows start:stop as float32 [stop - start, columns]."""
        values = self.format.decode(self.data[start:stop])
        if self.scales is None:
            return values
        return self.scales.multiply(values, np.arange(start, start + len(values)))

    def decode_rows(self, indices: NDArray[np.int32]) -> Floats:
        """The rows of those numbers as float32 [len(indices), columns]."""
        values = self.format.decode(self.data[indices])
        if self.scales is None:
            return values
        return self.scales.multiply(values, indices.astype(np.intp))

    def values(self) -> Floats:
        """All values as float32 in the weight's own shape."""
        return self.decode().reshape(self.shape)

    def row_slice(self, start: int, stop: int) -> Weight:
        """Rows start:stop of a matrix, as a view; FormatError if it has fewer."""
        scales = None if self.scales is None else self.scales.from_row(start)
        shape = (stop - start, self.columns)
        return Weight(self.format, shape, self.data[start:stop], self.name, scales)

    @property
    def column_unit(self) -> int:
        """Columns from one place where the matrix can be divided as it is stored to the next."""
        blocks = self.format.block_values
        return blocks if self.scales is None else math.lcm(blocks, self.scales.column_unit)

    def column_slice(self, start: int, stop: int) -> Weight:
        """Columns start:stop of a matrix, copied; FormatError where that divides a block."""
        unit = self.column_unit
        if start % unit or (stop % unit and stop != self.columns):
            raise FormatError(
                f"{self.name or 'a weight'} in {self.format.name}",
                f"columns {start} to {stop} divide its blocks of {unit}",
                "Convert it with --weights bf16",
            )
        blocks = self.data.reshape(self.rows, -1, self.format.block_bytes)
        values = self.format.block_values
        data = np.ascontiguousarray(blocks[:, start // values : stop // values])
        scales = None if self.scales is None else self.scales.of_columns(start, stop)
        shape = (*self.shape[:-1], stop - start)
        return Weight(self.format, shape, data.reshape(self.rows, -1), self.name, scales)
