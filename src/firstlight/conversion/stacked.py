"""A tensor of experts stacked, as gpt-oss is published: one number after another, [experts, rows]
or transposed [experts, columns, rows], rows of gate and up in turn.

Only this layout is read by others where numbers are plain; quantised, experts are written one by
one (`outputs.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.conversion.schemes import Plain
from firstlight.conversion.shard_file import ShardFile, TensorEntry
from firstlight.conversion.square import Square
from firstlight.errors import FormatError
from firstlight.formats.base import Floats, Weight
from firstlight.formats.plain import F32
from firstlight.model.stored import release_rows, stored_rows, stored_vector
from firstlight.model.tensor_source import TensorSource


@dataclass(frozen=True)
class StackedOutput:
    """All experts' matrices, or vectors, of one kind.

    Attributes:
        name: of the tensor.
        shape: of it.
        members: of each expert the parts whose rows lie in turn.
        transposed: each matrix is written [columns, rows].
        layer: number of the layer.
    """

    name: str
    shape: tuple[int, ...]
    members: tuple[tuple[TensorSource, ...], ...]
    transposed: bool
    scheme: Plain
    layer: int | None

    @property
    def module(self) -> str:
        return self.name

    def entries(self, checkpoint: Checkpoint) -> tuple[TensorEntry, ...]:
        """The one tensor that it is in the file."""
        return (TensorEntry(self.name, self.scheme.format.name.upper(), self.shape),)

    def read_bytes(self, checkpoint: Checkpoint) -> int:
        """Of the checkpoint."""
        names = {source.name for parts in self.members for source in parts}
        return sum(checkpoint.tensors[name].nbytes for name in names)


def write_stacked(
    output: StackedOutput, checkpoint: Checkpoint, shard: ShardFile, advance: Callable[[int], None]
) -> Square:
    """Write it, an expert at a time; as `write_output`."""
    total, position, told = Square(0.0, 0.0), 0, 0
    read = output.read_bytes(checkpoint)
    for number, parts in enumerate(output.members, 1):
        values = _joined(parts, checkpoint, output.transposed)
        flat = values.reshape(1, -1)
        weight = Weight(F32, flat.shape, flat.view(np.uint8), output.name)
        try:
            (data,), decoded = output.scheme.encode(weight)
        except FormatError as error:
            raise FormatError(output.name, error.reason, error.remedy) from error
        shard.write(output.name, position, np.ascontiguousarray(data))
        position += data.nbytes
        change = (decoded - flat).reshape(-1)
        total += Square(float(np.vdot(flat, flat)), float(np.dot(change, change)))
        done = read * number // len(output.members)
        advance(done - told)
        told = done
        for source in parts:
            release_rows(source, checkpoint, 0, source.shape[0])
    return total


def _joined(parts: tuple[TensorSource, ...], checkpoint: Checkpoint, transposed: bool) -> Floats:
    """One expert's values as they are written, float32."""
    rows, step = sum(source.shape[0] for source in parts), len(parts)
    values = np.empty((rows, *parts[0].shape[1:]), np.float32)
    for first, source in enumerate(parts):
        vector = len(source.shape) == 1
        values[first::step] = (
            stored_vector(source, checkpoint)
            if vector
            else stored_rows(source, checkpoint, 0, source.shape[0]).decode()
        )
    return np.ascontiguousarray(values.T if transposed else values)
