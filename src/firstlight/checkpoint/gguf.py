"""The GGUF format, versions 2 and 3, little-endian: headers, in one file or in numbered parts.

Source: docs/gguf.md of https://github.com/ggml-org/ggml ("File Structure"): magic, version,
counts, key-value pairs, tensor descriptions, then the tensors' bytes at multiples of
`general.alignment` (32 where the key is absent). Parts: llama.cpp's gguf-split, which names them
NAME-00001-of-00003.gguf and numbers them in the keys split.no, split.count and
split.tensors.count.

The file is mapped once, and the values of large arrays are not decoded here: the header of a
model with 262,144 tokens is read in some tens of milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from firstlight.checkpoint.files import (
    DOWNLOAD_AGAIN,
    exists,
    open_regular,
    read_exactly,
    refuse_lfs_pointer,
    shown,
)
from firstlight.checkpoint.ggml_types import ggml_type
from firstlight.checkpoint.gguf_values import Cursor
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.checkpoint.tensor_info import MOST_VALUES, TensorInfo, WeightsFile
from firstlight.errors import CheckpointError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_PARTS = 1000
MOST_AXES = 4

_CONVERT_AGAIN = "Convert the model to GGUF again with a current llama.cpp"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def read_header(path: Path) -> WeightsFile:
    """The header of one GGUF file, every number in it checked against the file's size.

    Raises:
        CheckpointError: the file is missing, cut short, big-endian, of another version, or its
            header lies.
    """
    with open_regular(path) as (file, size):
        start = read_exactly(file, min(size, 8), path)
    refuse_lfs_pointer(path, start)
    if start[:4] != MAGIC[: len(start)] or not start:
        raise CheckpointError(
            path, f"is not a GGUF file: it begins with {shown(start[:4])}", DOWNLOAD_AGAIN
        )
    mapping = MappedFile(path, size)
    cursor = Cursor(path, mapping.bytes().data)
    cursor.position = 4
    _check_version(cursor)
    tensor_count = cursor.number("<Q", "the number of tensors")
    key_count = cursor.number("<Q", "the number of keys")
    limits = (("keys", key_count, MOST_KEYS), ("tensors", tensor_count, MOST_TENSORS))
    for what, count, most in limits:
        if count > min(most, size // 12):
            raise cursor.bad(f"claims to have {count:,} {what} in {size:,} bytes")
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(cursor, metadata)
    tensors = _read_tensors(cursor, tensor_count, alignment)
    return WeightsFile(mapping, tensors, metadata)


def _check_version(cursor: Cursor) -> None:
    version: int = cursor.number("<I", "the version")
    if version in (2, 3):
        return
    if version and version & 0xFFFF == 0:
        raise cursor.bad(
            "is big-endian GGUF, and firstlight reads little-endian only",
            "Convert it with gguf-py's gguf_convert_endian, or download the little-endian file",
        )
    raise cursor.bad(
        f"is GGUF version {version}; firstlight reads versions 2 and 3", _CONVERT_AGAIN
    )


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = cursor.name(f"key {number}")
        if not key or key in metadata:
            raise cursor.bad(f"has {'an empty key' if not key else f'key {shown(key)} twice'}")
        kind = cursor.number("<I", f"the value type of {shown(key)}")
        metadata[key] = cursor.value(kind, shown(key))
    return metadata


def _alignment(cursor: Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.bad(
            f"has general.alignment {shown(alignment)}, which is no power of two", _CONVERT_AGAIN
        )
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    described: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for number in range(count):
        name = cursor.name(f"the name of tensor {number}")
        label = f"tensor {shown(name)}"
        if name in described:
            raise cursor.bad(f"describes {label} twice")
        axes = cursor.number("<I", f"the number of axes of {label}")
        if axes > MOST_AXES:
            raise cursor.bad(f"gives {label} {axes:,} axes, where GGUF allows {MOST_AXES}")
        innermost_first = [cursor.number("<Q", f"the shape of {label}") for _ in range(axes)]
        kind = cursor.number("<I", f"the type of {label}")
        offset = cursor.number("<Q", f"the offset of {label}")
        if offset % alignment:
            raise cursor.bad(f"places {label} at {offset:,}, no multiple of {alignment}")
        described[name] = kind, tuple(reversed(innermost_first)), offset
    data_start = -(-cursor.position // alignment) * alignment
    return _place_tensors(cursor, described, data_start)


def _place_tensors(
    cursor: Cursor, described: dict[str, tuple[int, tuple[int, ...], int]], data_start: int
) -> dict[str, TensorInfo]:
    """Sizes and positions, checked: each tensor within the file, none over another."""
    size = len(cursor.data)
    sizes = {
        name: _tensor_bytes(cursor, name, kind, shape)
        for name, (kind, shape, _) in described.items()
    }
    ordered = sorted(described, key=lambda name: (described[name][2], sizes[name] or 0))
    placed = {}
    for name, following in zip(ordered, [*ordered, None][1:], strict=True):
        kind, shape, offset = described[name]
        start = data_start + offset
        limit = size if following is None else data_start + described[following][2]
        known = sizes[name]
        nbytes = max(limit - start, 0) if known is None else known
        if start + nbytes > size and (nbytes or known is None):
            raise cursor.bad(
                f"is cut short: it has {size:,} bytes, and its tensor {shown(name)} would end at "
                f"byte {start + nbytes:,}"
            )
        if start + nbytes > limit and nbytes:
            raise cursor.bad(f"lets tensor {shown(name)} overlap another", _CONVERT_AGAIN)
        placed[name] = TensorInfo(
            name, ggml_type(kind).name, shape, nbytes, cursor.path, min(start, size)
        )
    return {name: placed[name] for name in described}


def _tensor_bytes(cursor: Cursor, name: str, kind: int, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor's data, or None for a type whose blocks are not known here."""
    if prod(axis or 1 for axis in shape) > MOST_VALUES:
        raise cursor.bad(f"gives tensor {shown(name)} the shape {list(shape)}, beyond addressing")
    stored = ggml_type(kind)
    if not stored.block_values:
        return None
    columns = shape[-1] if shape else 1
    if columns % stored.block_values:
        raise cursor.bad(
            f"gives tensor {shown(name)} rows of {columns:,} values, and {stored.name} stores "
            f"blocks of {stored.block_values}",
            _CONVERT_AGAIN,
        )
    return prod(shape) // stored.block_values * stored.block_bytes


def read_parts(path: Path) -> list[WeightsFile]:
    """The headers of a GGUF file, or of all parts of the set that `path` is one of, first first.

    Raises:
        CheckpointError: see `read_header`; or a part is missing, or the parts do not belong
            together.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise CheckpointError(path, f"has split.count {shown(count)}", _CONVERT_AGAIN)
    if count <= 1:
        return [header]
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            path,
            f"is one of {count} parts, and its name does not say which",
            f"Give the parts their names back: NAME-00001-of-{count:05d}.gguf and so on",
        )
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not exists(path.parent / name)]
    if missing:
        raise CheckpointError(
            path,
            f"is one of {count} parts, of which {len(missing)} are missing "
            f"({', '.join(missing[:3])}{', …' if missing[3:] else ''})",
            "Download the missing parts into the same folder",
        )
    parts = [header if name == path.name else read_header(path.parent / name) for name in names]
    for number, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise CheckpointError(
                part.path,
                f"does not say of itself that it is part {number + 1} of {count}",
                "Download all parts again, from one revision",
            )
    promised = parts[0].metadata.get("split.tensors.count")
    found = sum(len(part.tensors) for part in parts)
    if promised is not None and promised != found:
        raise CheckpointError(
            parts[0].path,
            f"promises {shown(promised)} tensors in all parts, and they hold {found:,}",
            "Download all parts again, from one revision",
        )
    return parts
