"""The bytes of a packed file: a prelude, a header in JSON, then the tensors.

    prelude   64 bytes   magic (16), layout version (u32), zero (u32), bytes of the header (u64),
                         SHA-256 of the header (32); integers are little-endian
    header    JSON       UTF-8: key, model, size of the file, tensors
    tensors              each at a multiple of ALIGNMENT bytes, in the header's order

The prelude is written last, so that a file without it was never finished.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

LAYOUT = 1
"""Raised whenever the meaning of a byte changes."""

MAGIC = b"firstlight-pack\n"
ALIGNMENT = 4096
MOST_HEADER_BYTES = 1 << 26
MOST_TENSORS = 1 << 18

_PRELUDE = struct.Struct("<16sIIQ32s")
PRELUDE_BYTES = _PRELUDE.size


class DamagedPackedFile(Exception):
    """A packed file is not what its header says, or has none; the message is a clause. It never
    reaches a user as it is: the file is removed and written again, or reported as damaged."""


@dataclass(frozen=True)
class PackedKey:
    """What decides the content of a packed file.

    Attributes:
        digest: hexadecimal SHA-256 of the checkpoint's weight files.
        target: name of the format that weights are converted to; "" keeps them as stored.
        layout: name and version of the backend's byte layout; "" where weights are only converted.
    """

    digest: str
    target: str
    layout: str

    def file_name(self) -> str:
        text = json.dumps([LAYOUT, self.digest, self.target, self.layout])
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".packed"


@dataclass(frozen=True)
class PackedTensor:
    """One tensor to be packed.

    Attributes:
        name: the checkpoint's name for it; a part of a fused tensor adds its rows.
        format: name of the storage format of its values.
        packed: whether its bytes are in the key's layout; False: as the format itself lays them.
        shape: of its values, [rows, columns].
        nbytes: of its packed form.
    """

    name: str
    format: str
    packed: bool
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class PlacedTensor:
    """Where a tensor lies in a packed file.

    Attributes:
        offset: of its first byte in the file, a multiple of ALIGNMENT.
        checksum: CRC-32 of its bytes; 0 until they are written.
    """

    tensor: PackedTensor
    offset: int
    checksum: int = 0


@dataclass(frozen=True)
class PackedHeader:
    """All that a packed file says of itself.

    Attributes:
        model: what the user called the model; for listings only.
        size: of the whole file in bytes.
    """

    key: PackedKey
    model: str
    size: int
    tensors: tuple[PlacedTensor, ...]

    def with_checksums(self, checksums: Sequence[int]) -> PackedHeader:
        placed = zip(self.tensors, checksums, strict=True)
        return replace(self, tensors=tuple(replace(each, checksum=sum) for each, sum in placed))

    def encode(self) -> tuple[bytes, bytes]:
        """Prelude and JSON. Their length does not depend on the checksums."""
        text = json.dumps(
            {
                "key": vars(self.key),
                "model": self.model,
                "size": self.size,
                "tensors": [
                    {
                        **vars(each.tensor),
                        "offset": each.offset,
                        "checksum": f"{each.checksum:08x}",
                    }
                    for each in self.tensors
                ],
            }
        ).encode()
        digest = hashlib.sha256(text).digest()
        return _PRELUDE.pack(MAGIC, LAYOUT, 0, len(text), digest), text


def place(key: PackedKey, model: str, tensors: Sequence[PackedTensor]) -> PackedHeader:
    """The header of a file with these tensors, checksums still missing."""
    start = 0
    while True:  # the header's length depends on the offsets, and they on it
        position = start
        placed = []
        for tensor in tensors:
            placed.append(PlacedTensor(tensor, position))
            position = aligned(position + tensor.nbytes)
        header = PackedHeader(key, model, position, tuple(placed))
        needed = aligned(PRELUDE_BYTES + len(header.encode()[1]))
        if needed <= start:
            return header
        start = needed


def aligned(position: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def header_bytes(prelude: bytes, size: int) -> int:
    """How many bytes of JSON follow a prelude, in a file of `size` bytes.

    Raises:
        DamagedPackedFile: it is none of ours, or not whole.
    """
    if len(prelude) < PRELUDE_BYTES:
        raise DamagedPackedFile("is cut short")
    magic, layout, zero, length, _ = _PRELUDE.unpack(prelude)
    if magic != MAGIC:
        raise DamagedPackedFile("does not begin as a packed file does")
    if layout != LAYOUT or zero:
        raise DamagedPackedFile(f"has layout {layout}, not {LAYOUT}")
    if not 0 < length <= min(MOST_HEADER_BYTES, size - PRELUDE_BYTES):
        raise DamagedPackedFile(f"claims a header of {length:,} bytes in {size:,}")
    return int(length)


def decode_header(prelude: bytes, text: bytes, size: int) -> PackedHeader:
    """The header, every number in it checked against the file's size.

    Raises:
        DamagedPackedFile: it is damaged, or lies.
    """
    if hashlib.sha256(text).digest() != _PRELUDE.unpack(prelude)[4]:
        raise DamagedPackedFile("has a header that does not match its checksum")
    try:
        content = json.loads(text)
        key = PackedKey(**{str(name): str(value) for name, value in content["key"].items()})
        header = PackedHeader(
            key,
            str(content["model"]),
            _natural(content["size"]),
            tuple(_placed(entry) for entry in content["tensors"][:MOST_TENSORS]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedPackedFile(f"has a header that makes no sense ({error})") from None
    if header.size != size:
        raise DamagedPackedFile(f"has {size:,} bytes where its header says {header.size:,}")
    position = PRELUDE_BYTES + len(text)
    for each in header.tensors:
        if each.offset % ALIGNMENT or each.offset < position:
            raise DamagedPackedFile(f"places a tensor at byte {each.offset:,}, out of order")
        position = each.offset + each.tensor.nbytes
    if position > size:
        raise DamagedPackedFile(f"places a tensor beyond its end, at byte {position:,}")
    return header


def _placed(entry: dict[str, Any]) -> PlacedTensor:
    tensor = PackedTensor(
        str(entry["name"]),
        str(entry["format"]),
        bool(entry["packed"]),
        tuple(_natural(axis) for axis in entry["shape"]),
        _natural(entry["nbytes"]),
    )
    return PlacedTensor(tensor, _natural(entry["offset"]), int(entry["checksum"], 16))


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:20]!r} is no size")
    return value
