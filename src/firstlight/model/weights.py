"""From a spec's tensor sources to a backend's packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import CheckpointError, InsufficientMemoryError
from firstlight.formats.base import Bytes, Format
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.matrices import (
    KeptMatrix,
    kept_matrices,
    memory_for,
    pack_matrix,
    packed_matrix,
)
from firstlight.model.spec import ModelSpec
from firstlight.model.stored import check_source, stored_rows, stored_vector
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.tensor_source import TensorSource
from firstlight.ops import Ops, PackedWeight


class Weights:
    """A model's tensors on one backend: vectors as float32 tensors, matrices packed."""

    def __init__(
        self,
        tensors: dict[TensorSource, PackedWeight],
        tables: Mapping[TensorSource, NDArray[np.int32]] | None = None,
    ) -> None:
        self._tensors = tensors
        self._tables = tables or {}

    def __getitem__(self, source: TensorSource) -> PackedWeight:
        return self._tensors[source]

    @cached_property
    def nbytes(self) -> int:
        """Of all tensors, as they are kept."""
        return sum(int(tensor.nbytes) for tensor in self._tensors.values())

    def table(self, source: TensorSource) -> NDArray[np.int32]:
        """A tensor of whole numbers, on the host."""
        return self._tables[source]


def check_sources(spec: ModelSpec, files: TensorFiles) -> None:
    """Whether the checkpoint has every tensor of the spec in its shape, from headers alone.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the config implies.
    """
    for source in spec.sources():
        check_source(source, files, spec.family)


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
                tensors[source] = ops.pack(stored_rows(source, files, 0, source.shape[0]))
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
                tensors[source] = _vector(source, files, ops)
                advance(vector_bytes(source))
    except MemoryError as error:
        raise InsufficientMemoryError(
            files.location,
            "memory ran out while the weights were loaded",
            "Free memory, or convert to a smaller format with --weights int4",
        ) from error
    return Weights(tensors, _tables(spec, files))


def weight_bytes(
    spec: ModelSpec, files: TensorFiles, target: Format | None = None, ops: Ops | None = None
) -> int:
    """Bytes of all weights as they are kept, from headers alone; see `kept_matrices`."""
    matrices = sum(matrix.nbytes for matrix in kept_matrices(spec, files, ops, target))
    others = [source for source in spec.sources() if _is_vector(source) or source.integers]
    return matrices + sum(vector_bytes(source) for source in others)


def vector_bytes(source: TensorSource) -> int:
    """Of a norm or bias, which is kept in float32, or of a table, in int32."""
    return 4 * prod(source.shape)


def _is_vector(source: TensorSource) -> bool:
    return len(source.shape) == 1


def largest_first(matrices: Iterable[KeptMatrix]) -> list[KeptMatrix]:
    return sorted(matrices, key=lambda matrix: -matrix.nbytes)


def _vector(source: TensorSource, files: TensorFiles, ops: Ops) -> PackedWeight:
    values = stored_vector(source, files)
    if source.offset:
        values = values + source.offset
    return ops.upload(values.astype("float32"))


def _tables(spec: ModelSpec, files: TensorFiles) -> dict[TensorSource, NDArray[np.int32]]:
    """The tables from tokens to experts, each entry an expert that there is."""
    tables = {}
    for layer in spec.all_layers:
        experts = layer.feed_forward
        if not isinstance(experts, ExpertsSpec) or experts.routing.hash_table is None:
            continue
        source = experts.routing.hash_table
        table = files.integers(source.name)
        if table.size and not 0 <= table.min() <= table.max() < experts.count:
            raise CheckpointError(
                files.location,
                f"tensor {source.name!r} names experts from {table.min()} to {table.max()}, and "
                f"there are {experts.count}",
                "Check that the config file and the weights belong to the same model",
            )
        tables[source] = table.astype(np.int32)
    return tables
