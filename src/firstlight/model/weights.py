"""From a spec's tensor sources to a backend's packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from firstlight.errors import CheckpointError, InsufficientMemoryError
from firstlight.formats.base import Bytes, Format, Weight
from firstlight.model.matrices import (
    KeptMatrix,
    kept_matrices,
    memory_for,
    pack_matrix,
    packed_matrix,
)
from firstlight.model.spec import ModelSpec, TensorSource
from firstlight.model.tensor_files import TensorFiles
from firstlight.ops import Ops, PackedWeight


class Weights:
    """A model's tensors on one backend: vectors as float32 tensors, matrices packed."""

    def __init__(self, tensors: dict[TensorSource, PackedWeight]) -> None:
        self._tensors = tensors

    def __getitem__(self, source: TensorSource) -> PackedWeight:
        return self._tensors[source]


def check_sources(spec: ModelSpec, files: TensorFiles) -> None:
    """Whether the checkpoint has every tensor of the spec in its shape, from headers alone.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the config implies.
    """
    for source in spec.sources():
        header = files.tensors.get(source.name)
        if header is None:
            raise CheckpointError(
                files.location,
                f"tensor {source.name!r} is missing, which family {spec.family} needs with "
                f"shape {list(source.stored_shape)}",
                "Fetch the model again: the file may be incomplete or belong to another model",
            )
        if tuple(header.shape) != source.stored_shape:
            raise CheckpointError(
                files.location,
                f"tensor {source.name!r} has shape {list(header.shape)}, but the config implies "
                f"{list(source.stored_shape)}",
                "Check that the config file and the weights belong to the same model",
            )


def load_weights(
    spec: ModelSpec,
    files: TensorFiles,
    ops: Ops,
    target: Format | None = None,
    advance: Callable[[int], None] = lambda _: None,
    packed: Mapping[TensorSource, Bytes] | None = None,
) -> Weights:
    """Every tensor of the spec, on the backend.

    Matrices stay in their storage format unless `target` names another; then those whose
    rows fill the target's blocks are converted. Vectors (norms, biases) become float32.

    Args:
        advance: called with the bytes of each tensor, as kept, for a progress bar.
        packed: what `pack_matrix` wrote earlier; matrices that are neither there nor used where
            they lie are packed into memory of this process.

    Raises:
        CheckpointError: as `check_sources`.
        FormatError: a tensor's storage format cannot be read.
        InsufficientMemoryError: memory ran out all the same.
    """
    check_sources(spec, files)
    packed = packed or {}
    tensors: dict[TensorSource, PackedWeight] = {}
    try:
        # The largest first: what packing needs beside the packed weights is then smallest.
        for matrix in largest_first(kept_matrices(spec, files, ops, target)):
            source = matrix.source
            if matrix.in_place:
                tensors[source] = ops.pack(_stored(files.weight(source.name), source))
                advance(matrix.nbytes)
            elif source in packed:
                tensors[source] = packed_matrix(matrix, ops, packed[source])
                advance(matrix.nbytes)
            else:
                memory = memory_for(matrix)
                pack_matrix(matrix, files, ops, memory, advance)
                tensors[source] = packed_matrix(matrix, ops, memory)
        for source in spec.sources():
            if _is_vector(source):
                tensors[source] = _vector(files.weight(source.name), source, ops)
                advance(vector_bytes(source))
    except MemoryError as error:
        raise InsufficientMemoryError(
            files.location,
            "memory ran out while the weights were loaded",
            "Free memory, or convert to a smaller format with --weights int4",
        ) from error
    return Weights(tensors)


def weight_bytes(
    spec: ModelSpec, files: TensorFiles, target: Format | None = None, ops: Ops | None = None
) -> int:
    """Bytes of all weights as they are kept, from headers alone; see `kept_matrices`."""
    matrices = sum(matrix.nbytes for matrix in kept_matrices(spec, files, ops, target))
    return matrices + sum(vector_bytes(source) for source in spec.sources() if _is_vector(source))


def vector_bytes(source: TensorSource) -> int:
    """Of a norm or bias, which is kept in float32."""
    return 4 * source.shape[0]


def _is_vector(source: TensorSource) -> bool:
    return len(source.shape) == 1


def largest_first(matrices: Iterable[KeptMatrix]) -> list[KeptMatrix]:
    return sorted(matrices, key=lambda matrix: -matrix.nbytes)


def _stored(weight: Weight, source: TensorSource) -> Weight:
    """The part of a stored tensor that the source means."""
    if source.first_row is None:
        return weight
    return weight.row_slice(source.first_row, source.first_row + source.shape[0])


def _vector(stored: Weight, source: TensorSource, ops: Ops) -> PackedWeight:
    values = stored.values().reshape(-1)
    if source.first_row is not None:
        values = values[source.first_row : source.first_row + source.shape[0]]
    if source.offset:
        values = values + source.offset
    return ops.upload(values.astype("float32"))
