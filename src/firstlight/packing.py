"""Packed weights from the cache, or into it: where checkpoint, backend and packed files meet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.digests import weights_digest
from firstlight.errors import InsufficientMemoryError
from firstlight.formats.base import Bytes, Format
from firstlight.formats.registry import ENCODING
from firstlight.host.cache import cache_directory
from firstlight.model.matrices import KeptMatrix, kept_matrices, pack_matrix
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.model.weights import (
    Weights,
    check_sources,
    largest_first,
    load_weights,
    weight_bytes,
)
from firstlight.ops import Ops
from firstlight.packed.layout import PackedKey, PackedTensor
from firstlight.packed.limit import limit_of
from firstlight.packed.store import PackedStore
from firstlight.progress import ProgressFactory, progress

WORTH_KEEPING = 1 << 26
"""Bytes of packed weights; fewer are packed in less time than a person notices."""

WORTH_KEEPING_CONVERTED = 1 << 22
"""The same for weights that are converted first, which takes far longer."""

SPARE_BYTES = 1 << 30
"""Of the disk, left to others."""


def packed_directory() -> Path:
    """Where packed files are; it may not exist yet."""
    return cache_directory() / "packed"


def packed_store() -> PackedStore | None:
    """The user's packed files; None where the system lacks the locks that make sharing them safe.

    Raises:
        FirstlightError: the limit makes no sense.
    """
    if find_spec("fcntl") is None:
        return None
    directory = packed_directory()
    return PackedStore(directory, limit_of(directory), SPARE_BYTES)


def load_packed_weights(
    model: str,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    ops: Ops,
    target: Format | None,
    cache: bool,
    mapped: bool = False,
) -> Weights:
    """Every tensor of a spec, from the checkpoint or from the user's packed files.

    Args:
        model: what the user calls it.
        cache: whether packed files are used, and written.
        mapped: memory does not hold the weights, so that they must all lie in files.

    Raises:
        CheckpointError, FormatError: as `load_weights`.
        InsufficientMemoryError: they do not all lie in files although they must; or memory ran out.
    """
    check_sources(spec, checkpoint)
    matrices = largest_first(kept_matrices(spec, checkpoint, ops, target))
    store = packed_store() if cache else None
    on_disk = kept_on_disk(
        store,
        model,
        checkpoint,
        matrices,
        ops,
        target,
        however_small=mapped,
        part="" if spec.part is None else f"rank {spec.part.rank} of {spec.part.ranks}",
    )
    in_memory = any(not each.in_place and each.source not in on_disk for each in matrices)
    if mapped and in_memory:
        raise InsufficientMemoryError(
            checkpoint.location,
            "its weights are larger than the memory available, and what is laid out anew for this "
            "device cannot be kept on disk either",
            "Make room on the disk, allow more with `firstlight cache limit SIZE`, or use --exact, "
            "which takes weights as they are stored",
        )
    total = weight_bytes(spec, checkpoint, target, ops)
    with progress("Packing weights" if in_memory else "Reading weights", total=total) as advance:
        return load_weights(spec, checkpoint, ops, target, advance, on_disk)


def kept_on_disk(
    store: PackedStore | None,
    model: str,
    checkpoint: Checkpoint,
    matrices: Sequence[KeptMatrix],
    ops: Ops,
    target: Format | None,
    *,
    however_small: bool = False,
    part: str = "",
    show: ProgressFactory = progress,
) -> dict[TensorSource, Bytes]:
    """The packed bytes of the matrices that are not used in place, from a mapped file that is
    written if there is none; empty where that is not possible or not worth it.

    Args:
        store: None keeps nothing.
        model: what the user calls the model.
        matrices: all of the model.
        target: the format that weights are converted to.
        however_small: keep them even where packing them anew takes no time.
        part: whose matrices these are, where they are not all that the model has.

    Raises:
        CheckpointError: a file of weights is gone or changes.
        FormatError: values cannot be expressed in the target format.
    """
    tensors = {_tensor(matrix): matrix for matrix in matrices if not matrix.in_place}
    if store is None or store.limit == 0 or not tensors:
        return {}
    if not however_small and not _worth_keeping(tensors.values()):
        return {}
    key = PackedKey(
        weights_digest(checkpoint.files, progress=show),
        _conversion(checkpoint, target, part),
        ops.packed_layout() or "",
    )
    wanted = tuple(tensors)
    found = store.find(key, wanted)
    if found is None:
        total = sum(tensor.nbytes for tensor in wanted)
        with show("Packing weights (once)", total=total) as advance:

            def fill(tensor: PackedTensor, out: Bytes) -> None:
                pack_matrix(tensors[tensor], checkpoint, ops, out, advance)

            found = store.get(key, model, wanted, fill)
    if found is None:
        return {}
    return {matrix.source: found.data(tensor.name) for tensor, matrix in tensors.items()}


def _conversion(checkpoint: Checkpoint, target: Format | None, part: str) -> str:
    """How the values in the files become those that are kept."""
    converted = "" if target is None else f"{target.name}, encoding {ENCODING}"
    return "; ".join(text for text in (converted, checkpoint.reading, part) if text)


def _tensor(matrix: KeptMatrix) -> PackedTensor:
    source = matrix.source
    part = "" if source.stack is None else f"[{source.stack.index}]"
    if source.first_row is not None:
        last = source.first_row + source.row_step * matrix.rows
        step = "" if source.row_step == 1 else f":{source.row_step}"
        part += f"[{source.first_row}:{last}{step}]"
    if source.first_column is not None:
        part += f"[, {source.first_column}:{source.first_column + matrix.columns}]"
    return PackedTensor(
        source.name + part, matrix.format.name, matrix.packed, source.shape, matrix.nbytes
    )


def _worth_keeping(matrices: Collection[KeptMatrix]) -> bool:
    converted = sum(each.nbytes for each in matrices if each.format.name != each.stored.name)
    packed = sum(each.nbytes for each in matrices)
    return converted >= WORTH_KEEPING_CONVERTED or packed >= WORTH_KEEPING
