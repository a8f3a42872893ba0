"""Weights laid out for the products: panels of sixteen rows (native/packed_layout.inl).

A packed matrix holds the values of its storage format exactly, in other places: unpacking gives
them back bit for bit. The bytes are the same on every machine and at every instruction level, so
that they can be kept in a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from firstlight.backends.cpu import _native
from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats, Format, Weight
from firstlight.formats.plain import F32
from firstlight.host.processor import usable_cores

LAYOUT = "panels-2"
"""Names the layout of the bytes; changed whenever that changes."""

PANEL_ROWS = 16
"""Panels lie one after another, so that whole ones can be packed by themselves."""

ALIGNMENT = 64
"""The address of packed bytes is a multiple of this."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix in panels.

    Attributes:
        format: the storage format whose values it holds.
        shape: of the values, as a Weight's.
        data: uint8 [packed_bytes(format, rows, columns)], its address a multiple of ALIGNMENT,
            possibly memory-mapped and read-only.
        name: the tensor's name in the checkpoint, for messages.
        matrix: the kernels' handle of it.

    Raises:
        FormatError: the data are not as stated above.
    """

    format: Format
    shape: tuple[int, ...]
    data: Bytes
    name: str = ""
    matrix: _native.Matrix = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            matrix = _native.Matrix(self.format.name, self.data, self.rows, self.columns, True)
        except (ValueError, TypeError) as error:
            raise FormatError(
                f"{self.name or 'a packed weight'} of shape {list(self.shape)}",
                f"its {self.data.nbytes} bytes are not {self.format.name} in panels: {error}",
                "Pack the weight anew",
            ) from error
        object.__setattr__(self, "matrix", matrix)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def layout(self) -> str:
        """Tells its shape from that of a weight in place (ops/shape.py)."""
        return LAYOUT

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def values(self) -> Floats:
        """All values as float32 in the matrix's own shape."""
        out = np.empty((self.rows, self.columns), np.float32)
        _default_kernels().embed(self.matrix, np.arange(self.rows, dtype=np.int32), out)
        return out.reshape(self.shape)

    def unpack(self) -> Weight:
        """The same values as a weight in f32, for a fallback."""
        data = self.values().reshape(self.rows, self.columns).view(np.uint8)
        return Weight(F32, self.shape, data, self.name)


def packed_bytes(format: Format, rows: int, columns: int) -> int | None:
    """The size of a packed matrix; None where matrices like it are used in place."""
    if (format.block_values, format.block_bytes) != _native.formats().get(format.name):
        return None
    return _native.packed_bytes(format.name, rows, columns)


def pack_into(weight: Weight, out: Bytes, native: _native.Kernels | None = None) -> None:
    """Lay a weight out in panels.

    Args:
        weight: one for which packed_bytes gives a size.
        out: uint8 [packed_bytes(...)], aligned to ALIGNMENT; all of it is written.
        native: whose threads do it; all usable cores if None.
    """
    data = np.ascontiguousarray(weight.data)
    (native or _default_kernels()).pack(weight.format.name, data, weight.rows, weight.columns, out)


def pack(weight: Weight, native: _native.Kernels | None = None) -> PackedMatrix | None:
    """A weight in panels; None where it is used in place."""
    size = packed_bytes(weight.format, weight.rows, weight.columns)
    if size is None or not weight.shape:
        return None
    out = aligned_bytes(size)
    pack_into(weight, out, native)
    return PackedMatrix(weight.format, weight.shape, out, weight.name)


def aligned_bytes(size: int) -> Bytes:
    """uint8 [size], not initialised, its address a multiple of ALIGNMENT."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


@cache
def _default_kernels() -> _native.Kernels:
    return _native.Kernels(_native.levels()[-1], usable_cores())
