"""The safetensors format: headers only, for one file or many shards.

Our own reader, because opening a model means reading the headers of up to some hundred shards
within a second and mapping none of them until a tensor is asked for, without PyTorch; the
`safetensors` package maps each file it opens. It is the oracle of the tests instead.

Source: https://github.com/huggingface/safetensors, README, section "Format": eight bytes of
little-endian header length N (at most 100 MB), N bytes of JSON that start with "{" and may end
in spaces, then the tensors' bytes, which the offsets cover wholly, without holes or overlaps.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from firstlight.checkpoint.files import (
    DOWNLOAD_AGAIN,
    exists,
    open_regular,
    read_exactly,
    read_limited,
    refuse_lfs_pointer,
    shown,
)
from firstlight.checkpoint.json_file import is_encodable, parse_json_object
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.checkpoint.tensor_info import MOST_AXES, MOST_VALUES, TensorInfo, WeightsFile
from firstlight.errors import CheckpointError

LARGEST_HEADER = 100_000_000
LARGEST_INDEX = 64 << 20

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one value, for each dtype of safetensors 0.8."""

_PUBLISH_AGAIN = "Download the file again; if that does not help, ask its publisher to save it anew"


def read_header(path: Path) -> WeightsFile:
    """The header of a safetensors file, every number in it checked against the file's size.

    Raises:
        CheckpointError: the file is missing, cut short, or its header lies.
    """
    with open_regular(path) as (file, size):
        if size < 8:
            raise CheckpointError(
                path, f"has {size} bytes, too few for a safetensors header", DOWNLOAD_AGAIN
            )
        first = read_exactly(file, 8, path)
        refuse_lfs_pointer(path, first)
        length = int.from_bytes(first, "little")
        if length > LARGEST_HEADER:
            raise CheckpointError(
                path,
                f"does not begin like safetensors: its header would have {length:,} bytes, and "
                f"the format allows {LARGEST_HEADER:,}",
                DOWNLOAD_AGAIN,
            )
        if length > size - 8:
            raise CheckpointError(
                path,
                f"is cut short: its header has {length:,} bytes and only {size - 8:,} follow",
                DOWNLOAD_AGAIN,
            )
        raw = read_exactly(file, length, path)
    if raw[:1] != b"{":
        raise CheckpointError(path, "has a header that does not start with '{'", DOWNLOAD_AGAIN)
    header = parse_json_object(raw, path, what="header")
    _check_metadata(header.pop("__metadata__", None), path)
    tensors = _read_tensors(header, path, 8 + length)
    if b"\\u" in raw:
        for name in tensors:
            if not is_encodable(name):
                raise CheckpointError(
                    path, f"names a tensor {shown(name)}, which is not Unicode", _PUBLISH_AGAIN
                )
    _check_coverage(tensors, path, 8 + length, size)
    return WeightsFile(MappedFile(path, size), tensors)


def _check_metadata(metadata: object, path: Path) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise CheckpointError(path, "has __metadata__ that is not all text", _PUBLISH_AGAIN)


def _read_tensors(header: dict[str, Any], path: Path, data_start: int) -> dict[str, TensorInfo]:
    """Each entry checked by itself. One plain loop: it runs 100,000 times for a large model."""
    tensors = {}
    for name, entry in header.items():
        try:
            dtype = entry["dtype"]
            axes = entry["shape"]
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise _bad(path, name, "lacks dtype, shape or data_offsets") from None
        if type(dtype) is not str or len(dtype) > 64 or not dtype.isascii():
            raise _bad(path, name, f"has dtype {shown(dtype)}")
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise _bad(path, name, f"has data_offsets {shown(entry['data_offsets'])}")
        if type(axes) is not list or len(axes) > MOST_AXES:
            raise _bad(path, name, f"has shape {shown(axes)}")
        values = span = 1
        for axis in axes:
            if type(axis) is not int or axis < 0:
                raise _bad(path, name, f"has shape {shown(axes)}")
            values *= axis
            span *= axis or 1
        if span > MOST_VALUES:
            raise _bad(path, name, f"has shape {shown(axes)}, beyond addressing")
        bits = BITS.get(dtype)
        if bits is not None and values * bits != (end - begin) * 8:
            raise _bad(
                path,
                name,
                f"of dtype {dtype} and shape {shown(axes)} needs {values * bits / 8:,.10g} bytes, "
                f"and its data_offsets span {end - begin:,}",
            )
        tensors[name] = TensorInfo(
            name, dtype.lower(), tuple(axes), end - begin, path, data_start + begin
        )
    return tensors


def _check_coverage(tensors: dict[str, TensorInfo], path: Path, data_start: int, size: int) -> None:
    """The tensors' bytes follow each other from `data_start` to the end of the file."""
    position = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != position:
            problem = "leaves a hole before it" if info.offset > position else "overlaps another"
            raise _bad(path, info.name, f"starts at byte {info.offset:,} and so {problem}")
        position += info.nbytes
    if position > size:
        raise CheckpointError(
            path,
            f"is cut short: it has {size:,} bytes and its header describes {position:,}",
            DOWNLOAD_AGAIN,
        )
    if position < size:
        raise CheckpointError(
            path,
            f"has {size - position:,} bytes after its last tensor, which its header does not "
            "describe",
            _PUBLISH_AGAIN,
        )


def _bad(path: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(path, f"tensor {shown(name)} {reason}", _PUBLISH_AGAIN)


def read_shards(index: Path) -> list[WeightsFile]:
    """The headers of all shards that `model.safetensors.index.json` lists.

    A tensor that a shard holds and the index does not mention is kept: its bytes are there.

    Raises:
        CheckpointError: the index or a shard is damaged, a shard is missing, a shard lies
            outside the checkpoint, or the index and the shards contradict each other.
    """
    document = parse_json_object(read_limited(index, LARGEST_INDEX), index)
    shard_of = document.get("weight_map")
    if not isinstance(shard_of, dict) or not all(type(v) is str for v in shard_of.values()):
        raise CheckpointError(index, "has no weight_map from tensor names to files", _PUBLISH_AGAIN)
    if not shard_of:
        raise CheckpointError(index, "lists no tensors", _PUBLISH_AGAIN)
    names = sorted(set(shard_of.values()))
    paths = {name: _shard_path(index, name) for name in names}
    missing = [name for name in names if not exists(paths[name])]
    if missing:
        raise CheckpointError(
            index,
            f"lists {len(names)} shards, of which {len(missing)} are missing "
            f"({', '.join(shown(name) for name in missing[:3])}{', …' if missing[3:] else ''})",
            "Download the missing shards into the same folder",
        )
    shards = {name: read_header(paths[name]) for name in names}
    for tensor, shard in shard_of.items():
        if tensor not in shards[shard].tensors:
            raise CheckpointError(
                paths[shard],
                f"lacks tensor {shown(tensor)}, which {index.name} places there",
                "Download the index and the shards again, all from one revision",
            )
    for name, file in shards.items():
        for tensor in [t for t in file.tensors if shard_of.get(t, name) != name]:
            del file.tensors[tensor]  # a second copy; the index says which one counts
    return list(shards.values())


def _shard_path(index: Path, name: str) -> Path:
    windows = PureWindowsPath(name)
    parts = PurePosixPath(name).parts
    safe = (
        name.endswith(".safetensors")
        and name.isprintable()
        and len(name) < 256
        and not PurePosixPath(name).is_absolute()
        and not windows.anchor
        and ".." not in parts
        and ".." not in windows.parts
    )
    if not safe:
        raise CheckpointError(
            index,
            f"lists a shard {shown(name)}, which is not a .safetensors file inside the checkpoint",
            "Do not use this checkpoint: a correct index names files of its own folder",
        )
    return index.parent.joinpath(*parts)
