"""A checkpoint: a model's files as published, opened by their headers alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint import gguf, safetensors
from firstlight.checkpoint.config import read_config
from firstlight.checkpoint.files import shown
from firstlight.checkpoint.find_weights import find_weights
from firstlight.checkpoint.float8_scales import block_scales, scale_tensor
from firstlight.checkpoint.generation import (
    GenerationDefaults,
    generation_of_folder,
    generation_of_gguf,
)
from firstlight.checkpoint.licence import licence_of_folder, licence_of_gguf
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.checkpoint.quantization import Float8Blocks, Quantization, quantization_of
from firstlight.checkpoint.quantized_layouts import (
    QuantizedTensor,
    logical_tensors,
    quantized_tensors,
)
from firstlight.checkpoint.stand_in import StandIn, stand_in_at
from firstlight.checkpoint.tensor_info import TensorInfo, merge_tensors
from firstlight.errors import CheckpointError, FirstlightError, FormatError
from firstlight.formats.base import BlockScales, Bytes, Format, Weight

if TYPE_CHECKING:
    from firstlight.checkpoint.quantized_weights import QuantizedWeight

# Of tensors that hold no weights.
_INTEGERS: dict[str, np.dtype[Any]] = {
    "u8": np.dtype("u1"),
    "i8": np.dtype("i1"),
    "f8_e8m0": np.dtype("u1"),  # the exponents
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
}
# Of parts of quantised weights; the bits of what NumPy has no type for.
_PARTS = _INTEGERS | {
    "i8": np.dtype("i1"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "f32": np.dtype("<f4"),
    "f8_e4m3": np.dtype("u1"),
    "f8_e8m0": np.dtype("u1"),
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
        tensors: by name, in the files' order. A quantised matrix that is stored in several tensors
            is one here, under the name X.weight; its format says how it was quantised.
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
    _quantized: Mapping[str, QuantizedTensor] = field(default_factory=dict, repr=False)
    _kept_scales: dict[str, BlockScales] = field(default_factory=dict, repr=False)
    _opened: dict[str, QuantizedWeight] = field(default_factory=dict, repr=False)

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
        """The storage format that a tensor is given in: known from its header, but for matrices
        with scales of groups, whose scales tell whether a format with fast kernels holds them.

        Raises:
            CheckpointError: there is no such tensor, or its scales are damaged.
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
        if name in self._quantized:
            return self._format_of_codes(name)
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
            scale_tensor(info, self._float8, self.tensors)
        return format

    @cached_property
    def reading(self) -> str:
        """What decides, beside the files of weights, what their codes mean; "" if nothing."""
        kinds = {tensor.kind for tensor in self._quantized.values()}
        return ", ".join(sorted(map(repr, kinds)))

    @cached_property
    def _float8(self) -> Float8Blocks | None:
        found = None if self.kind == "gguf" else quantization_of(self.config, self.location)
        return None if found is None else found.float8

    def _format_of_codes(self, name: str) -> Format:
        from firstlight.checkpoint.quantized_weights import expected_format

        if self.stand_in is not None:
            return expected_format(self._quantized[name])
        return self._opened_codes(name).format

    def _opened_codes(self, name: str) -> QuantizedWeight:
        """A quantised matrix; its scales are checked once."""
        from firstlight.checkpoint.quantized_weights import opened

        if name not in self._opened:
            self._opened[name] = opened(self._quantized[name], self._part)
        return self._opened[name]

    def _part(self, info: TensorInfo) -> NDArray[Any]:
        """A part of a quantised matrix, in its own type and shape."""
        return _typed(self._bytes(info), _PARTS[info.format], info.shape)

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
        if name in self._quantized:
            return self.rows(name, 0, info.shape[0])
        shape = info.shape or (1,)
        data = self._bytes(info).reshape(prod(shape[:-1]), format.row_bytes(shape[-1]))
        return Weight(format, shape, data, name, self._scales(info))

    def rows(self, name: str, start: int, stop: int) -> Weight:
        """Rows start:stop of a matrix in its storage format, all axes but the last counted as rows:
        a view of the file, but for quantised matrices whose codes lie otherwise there.

        Raises:
            CheckpointError, FormatError: as `weight`.
        """
        if name not in self._quantized or self.stand_in is not None:
            return self.weight(name).row_slice(start, stop)
        return self._opened_codes(name).rows(self._part, start, stop)

    def raw(self, name: str) -> Bytes:
        """A tensor's bytes as they are stored, whatever its type: a read-only view of the file.

        Raises:
            CheckpointError: as `weight`.
        """
        if self.stand_in is not None:
            raise self.stand_in.refusal(self.location)
        return self._bytes(self.tensors[name])

    def _bytes(self, info: TensorInfo) -> Bytes:
        return self._mappings[info.file].bytes()[info.offset : info.offset + info.nbytes]

    def _scales(self, info: TensorInfo) -> BlockScales | None:
        """Of a tensor whose values are codes of fp8; checked once, and kept."""
        if info.format != "f8_e4m3" or self._float8 is None:
            return None
        if info.name not in self._kept_scales:
            found = scale_tensor(info, self._float8, self.tensors)
            self._kept_scales[info.name] = block_scales(
                self._bytes(found), found, info, self._float8
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
        return _typed(self._bytes(info), dtype, info.shape)

    def release(self, name: str, start: int, stop: int) -> None:
        """Let go of the pages of rows start:stop of a tensor; they are read again if used."""
        info = self.tensors[name]
        if name in self._quantized:
            # Rows may lie across the file: all is let go with the last of them.
            if stop == info.shape[0]:
                for part in self._quantized[name].parts():
                    self._mappings[part.file].release(part.offset, part.nbytes)
            return
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
    stored = merge_tensors(files)
    quantized = {} if found.kind == "gguf" else _quantized_tensors(config, stored, path)
    return Checkpoint(
        location=path,
        kind=found.kind,
        config=MappingProxyType(dict(config)),
        tensors=MappingProxyType(logical_tensors(stored, quantized) if quantized else stored),
        files=tuple(file.path for file in files),
        _mappings={file.path: file.mapping for file in files},
        stand_in=stand_in_at(path),
        _quantized=quantized,
    )


def _quantized_tensors(
    config: Mapping[str, Any], stored: Mapping[str, TensorInfo], path: Path
) -> Mapping[str, QuantizedTensor]:
    """Matrices that are stored in several tensors."""
    declared: Quantization | None = None
    # What cannot be read is refused when the model is made, so that its files can be described.
    with suppress(FirstlightError):
        declared = quantization_of(config, path)
    if declared is None or not declared.codes:
        return {}
    with _without_garbage_collection():
        return quantized_tensors(stored, declared.codes)


def _typed(stored: Bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Bytes of a file as values; a copy where they do not lie as the processor wants them."""
    if stored.ctypes.data % dtype.itemsize:
        stored = stored.copy()
    values: NDArray[Any] = stored.view(dtype).reshape(shape)
    return values


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
