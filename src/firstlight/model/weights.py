"""From a spec's tensor sources to a backend's packed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from firstlight.errors import CheckpointError, InsufficientMemoryError
from firstlight.formats.base import Format, Weight
from firstlight.formats.registry import convert
from firstlight.model.spec import ModelSpec, TensorSource
from firstlight.ops import Ops, PackedWeight


class TensorHeader(Protocol):
    """What the headers say of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str: ...


class TensorFiles(Protocol):
    """The part of a checkpoint that weights come from."""

    @property
    def location(self) -> object: ...

    @property
    def tensors(self) -> Mapping[str, TensorHeader]: ...

    def weight(self, name: str) -> Weight: ...


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
) -> Weights:
    """Every tensor of the spec, on the backend.

    Matrices stay in their storage format unless `target` names another; then those whose
    rows fill the target's blocks are converted. Vectors (norms, biases) become float32.

    Args:
        advance: called with the bytes of each tensor once it is there, for a progress bar.

    Raises:
        CheckpointError: as `check_sources`.
        FormatError: a tensor's storage format cannot be read.
        InsufficientMemoryError: memory ran out all the same.
    """
    check_sources(spec, files)
    tensors: dict[TensorSource, PackedWeight] = {}
    try:
        for source in spec.sources():
            stored = files.weight(source.name)
            tensors[source] = (
                _vector(stored, source, ops)
                if len(source.shape) == 1
                else ops.pack(_matrix(stored, source, target))
            )
            # A fused tensor is come by once for each of its parts.
            advance(stored.nbytes * source.shape[0] // source.stored_shape[0])
    except MemoryError as error:
        raise InsufficientMemoryError(
            files.location,
            "memory ran out while the weights were loaded",
            "Free memory, or convert to a smaller format with --weights int4",
        ) from error
    return Weights(tensors)


def _matrix(stored: Weight, source: TensorSource, target: Format | None) -> Weight:
    if source.first_row is not None:
        stored = stored.row_slice(source.first_row, source.first_row + source.shape[0])
    fits = target is not None and stored.columns % target.block_values == 0
    if target is None or not fits or stored.format.name == target.name:
        return stored
    return convert(stored, target)


def _vector(stored: Weight, source: TensorSource, ops: Ops) -> PackedWeight:
    values = stored.values().reshape(-1)
    if source.first_row is not None:
        values = values[source.first_row : source.first_row + source.shape[0]]
    if source.offset:
        values = values + source.offset
    return ops.upload(values.astype("float32"))
