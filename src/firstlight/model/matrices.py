"""How each matrix of a model is kept on a backend, and how it gets there a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from firstlight.formats.base import Bytes, Format, Weight
from firstlight.formats.registry import convert, convert_into, get_format
from firstlight.model.spec import ModelSpec
from firstlight.model.stored import lies_in_rows, release_rows, stored_format, stored_rows
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.tensor_source import TensorSource
from firstlight.ops import Ops, PackedWeight

_STEP_BYTES = 1 << 24
"""Of a stored matrix: what is read, converted and packed before its pages are let go."""

_ALIGNMENT = 64


@dataclass(frozen=True)
class KeptMatrix:
    """A matrix, and the form in which a backend keeps it.

    Attributes:
        stored, format: in the checkpoint, and of the values as they are kept.
        packed: whether the backend lays it out anew.
        nbytes: of the form in which it is kept.
    """

    source: TensorSource
    stored: Format
    format: Format
    packed: bool
    nbytes: int

    @property
    def in_place(self) -> bool:
        """Whether it is used as it lies in the checkpoint, or such columns of it as are wanted."""
        return (
            not self.packed and self.format.name == self.stored.name and lies_in_rows(self.source)
        )

    @property
    def rows(self) -> int:
        return prod(self.source.shape[:-1])

    @property
    def columns(self) -> int:
        return self.source.shape[-1]


def kept_matrices(
    spec: ModelSpec, files: TensorFiles, ops: Ops | None = None, target: Format | None = None
) -> tuple[KeptMatrix, ...]:
    """Every matrix of the model, from headers alone.

    Args:
        ops: the backend; None stands for one that uses weights as they are stored.
        target: the format to convert to, where a row fills its blocks; None: as stored.
    """
    return tuple(
        _kept(source, stored_format(source, files), ops, target)
        for source in spec.sources()
        if len(source.shape) > 1 and not source.integers
    )


def _kept(
    source: TensorSource, stored: Format, ops: Ops | None, target: Format | None
) -> KeptMatrix:
    rows, columns = prod(source.shape[:-1]), source.shape[-1]
    if source.kept is not None:
        target = get_format(source.kept)
    fits = target is not None and columns % target.block_values == 0
    format = target if target is not None and fits else stored
    packed = None if ops is None else ops.packed_bytes(format, rows, columns)
    nbytes = rows * format.row_bytes(columns) if packed is None else packed
    return KeptMatrix(source, stored, format, packed is not None, nbytes)


def pack_matrix(
    matrix: KeptMatrix,
    files: TensorFiles,
    ops: Ops,
    out: Bytes,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Convert and pack a matrix into `out`, letting go of the checkpoint's pages on the way.

    Args:
        out: uint8 [matrix.nbytes], beginning at a multiple of 64 bytes.
        advance: told of the bytes written.

    Raises:
        FormatError: its values cannot be expressed in the format that it is kept in.
    """
    step = _rows_of_a_step(matrix, ops)
    position = 0
    for start in range(0, matrix.rows, step):
        stop = min(start + step, matrix.rows)
        end = matrix.nbytes
        if stop < matrix.rows:
            end = position + _part_bytes(matrix, ops, stop - start)
        part = stored_rows(matrix.source, files, start, stop)
        _write(matrix, part, ops, out[position:end])
        release_rows(matrix.source, files, start, stop)
        advance(end - position)
        position = end


def _rows_of_a_step(matrix: KeptMatrix, ops: Ops) -> int:
    """As many as make about _STEP_BYTES in the checkpoint, and end where the next may begin."""
    group = ops.packed_row_group(matrix.format) if matrix.packed else 1
    if group is None or not matrix.nbytes:
        return matrix.rows
    if matrix.packed:
        group *= _ALIGNMENT // gcd(_ALIGNMENT, _part_bytes(matrix, ops, group))
    rows = _STEP_BYTES // matrix.stored.row_bytes(matrix.columns)
    return max(1, rows // group) * group


def _part_bytes(matrix: KeptMatrix, ops: Ops, rows: int) -> int:
    packed = ops.packed_bytes(matrix.format, rows, matrix.columns) if matrix.packed else None
    return rows * matrix.format.row_bytes(matrix.columns) if packed is None else packed


def _write(matrix: KeptMatrix, part: Weight, ops: Ops, out: Bytes) -> None:
    if matrix.packed:
        ops.pack_into(convert(part, matrix.format), out)
    elif part.format.name == matrix.format.name:
        out.reshape(part.rows, -1)[...] = part.data
    else:
        convert_into(part, matrix.format, out.reshape(part.rows, -1))


def packed_matrix(matrix: KeptMatrix, ops: Ops, data: Bytes) -> PackedWeight:
    """The backend's weight from what `pack_matrix` wrote."""
    source = matrix.source
    if matrix.packed:
        return ops.packed_from(matrix.format, source.shape, data, source.name)
    rows = data.reshape(matrix.rows, matrix.format.row_bytes(matrix.columns))
    return ops.pack(Weight(matrix.format, source.shape, rows, source.name))


def memory_for(matrix: KeptMatrix) -> Bytes:
    """Memory of this process for a matrix: uint8 [nbytes], at a multiple of 64 bytes."""
    memory = np.empty(matrix.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + matrix.nbytes]
