"""A checkpoint: a model's files as published, opened by their headers alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint import gguf, safetensors
from firstlight.checkpoint.config import read_config
from firstlight.checkpoint.files import shown
from firstlight.checkpoint.find_weights import find_weights
from firstlight.checkpoint.generation import (
    GenerationDefaults,
    generation_of_folder,
    generation_of_gguf,
)
from firstlight.checkpoint.licence import licence_of_folder, licence_of_gguf
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.checkpoint.quantization import (
    Float8Blocks,
    block_scales,
    quantization_of,
    scale_tensor,
)
from firstlight.checkpoint.stand_in import StandIn, stand_in_at
from firstlight.checkpoint.tensor_info import TensorInfo, merge_tensors
from firstlight.errors import CheckpointError, FormatError
from firstlight.formats.base import BlockScales, Bytes, Format, Weight

# Of tensors that hold no weights.
_INTEGERS: dict[str, np.dtype[Any]] = {
    "u8": np.dtype("u1"),
    "i8": np.dtype("i1"),
    "f8_e8m0": np.dtype("u1"),  # the exponents
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
}

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's files. Nothing in them was executed; of the tensors only headers were read.

    Attributes:
        location: the directory or .gguf file that was opened.
        kind: how the weights are stored.
        config: the object in config.json, or the metadata of a GGUF file: numbers, bool, str,
            read-only NumPy arrays, `StringArray`s, and lists of those. No float is NaN or infinite.
        tensors: by name, in the files' order.
        files: the files that hold the tensors.
        stand_in: what the files stand in for, where they hold headers alone; None for a model.
    """

    location: Path
    kind: Literal["safetensors", "gguf"]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    _mappings: Mapping[Path, MappedFile] = field(repr=False)
    stand_in: StandIn | None = None
    _kept_scales: dict[str, BlockScales] = field(default_factory=dict, repr=False)

    @cached_property
    def generation(self) -> GenerationDefaults:
        """The publisher's defaults; CheckpointError where they make no sense."""
        if self.kind == "gguf":
            return generation_of_gguf(self.config, self.files[0])
        return generation_of_folder(self.location, self.config)

    @cached_property
    def licence(self) -> str | None:
        """One printable line, or None where the files do not say."""
        said = licence_of_gguf(self.config) if self.kind == "gguf" else None
        if said is None and self.location.is_dir():
            said = licence_of_folder(self.location)
        return said

    def format_of(self, name: str) -> Format:
        """The storage format of a tensor, known from its header.

        Raises:
            CheckpointError: there is no such tensor.
            FormatError: it is stored in a type that firstlight does not decode.
        """
        # Imported here: the decoders need tables that reading headers does not.
        from firstlight.formats.registry import get_format

        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(
                self.location,
                f"has no tensor {shown(name)}",
                "Check that all files of the model are there and of one revision",
            )
        try:
            format = get_format(info.format)
        except FormatError as error:
            raise FormatError(
                info.file,
                f"tensor {shown(name)} is stored as {shown(info.format)}: {error.reason}",
                error.remedy,
            ) from None
        shape = info.shape or (1,)
        whole_blocks = shape[-1] % format.block_values == 0
        if not whole_blocks or prod(shape[:-1]) * format.row_bytes(shape[-1]) != info.nbytes:
            raise FormatError(
                info.file,
                f"tensor {shown(name)} of shape {list(shape)} does not fit format {info.format} "
                f"in {info.nbytes:,} bytes",
                "Use another file of this model, stored in a common format such as bf16 or q8_0",
            )
        if format.name == "f8_e4m3":
            scale_tensor(info, self._quantization, self.tensors)
        return format

    @cached_property
    def _quantization(self) -> Float8Blocks | None:
        return None if self.kind == "gguf" else quantization_of(self.config, self.location)

    def weight(self, name: str) -> Weight:
        """The tensor in its storage format, as a read-only view of the memory-mapped file.

        Its file is mapped on the first call and stays mapped as long as any of its weights
        lives. A tensor without axes is given as a vector of one value.

        Raises:
            CheckpointError: there is no such tensor, its file has changed since, or the checkpoint
                is a stand-in.
            FormatError: as `format_of`.
        """
        if self.stand_in is not None:
            raise self.stand_in.refusal(self.location)
        format = self.format_of(name)
        info = self.tensors[name]
        shape = info.shape or (1,)
        data = self._bytes(info).reshape(prod(shape[:-1]), format.row_bytes(shape[-1]))
        return Weight(format, shape, data, name, self._scales(info))

    def _bytes(self, info: TensorInfo) -> Bytes:
        return self._mappings[info.file].bytes()[info.offset : info.offset + info.nbytes]

    def _scales(self, info: TensorInfo) -> BlockScales | None:
        """Of a tensor whose values are codes of fp8; checked once, and kept."""
        if info.format != "f8_e4m3" or self._quantization is None:
            return None
        if info.name not in self._kept_scales:
            found = scale_tensor(info, self._quantization, self.tensors)
            self._kept_scales[info.name] = block_scales(
                self._bytes(found), found, self._quantization
            )
        return self._kept_scales[info.name]

    def integers(self, name: str) -> NDArray[Any]:
        """A tensor of whole numbers in its own type and shape, as a read-only view of the file.

        Raises:
            CheckpointError: as `weight`.
            FormatError: it holds something else.
        """
        if self.stand_in is not None:
            raise self.stand_in.refusal(self.location)
        info = self.tensors.get(name)
        dtype = None if info is None else _INTEGERS.get(info.format)
        if info is None or dtype is None:
            held = "is not there" if info is None else f"is stored as {shown(info.format)}"
            raise FormatError(
                self.location if info is None else info.file,
                f"tensor {shown(name)}, a table of whole numbers, {held}",
                "Fetch the model again from where it was published",
            )
        stored = self._mappings[info.file].bytes()[info.offset : info.offset + info.nbytes]
        if stored.ctypes.data % dtype.itemsize:
            stored = stored.copy()
        values: NDArray[Any] = stored.view(dtype).reshape(info.shape)
        return values

    def release(self, name: str, start: int, stop: int) -> None:
        """Let go of the pages of rows start:stop of a tensor; they are read again if used."""
        info = self.tensors[name]
        row_bytes = info.nbytes // max(1, prod(info.shape[:-1]))
        self._mappings[info.file].release(
            info.offset + start * row_bytes, (stop - start) * row_bytes
        )


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at `path`: a directory as on Hugging Face, or a .gguf file.

    Reads headers only, so that 160 shards with 100,000 tensors take well under a second.

    Raises:
        CheckpointError: there is none, it is damaged, its files contradict each other, or its
            weights are stored as pickle, which cannot be read without running code.
    """
    path = Path(path)
    found = find_weights(path)
    if found.kind == "gguf":
        files = gguf.read_parts(found.paths[0])
        config = files[0].metadata
    else:
        config = read_config(path)
        with _without_garbage_collection():
            files = (
                safetensors.read_shards(found.paths[0])
                if found.is_index
                else [safetensors.read_header(file) for file in found.paths]
            )
    return Checkpoint(
        location=path,
        kind=found.kind,
        config=MappingProxyType(dict(config)),
        tensors=MappingProxyType(merge_tensors(files)),
        files=tuple(file.path for file in files),
        _mappings={file.path: file.mapping for file in files},
        stand_in=stand_in_at(path),
    )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pauses the collector, which would walk the growing headers again and again (three times
    the time for 100,000 tensors) and find nothing: nothing made here refers to itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
