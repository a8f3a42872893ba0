"""A packed file that is there: opened by its header, then mapped."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from firstlight.formats.base import Bytes
from firstlight.host.mapping import map_file
from firstlight.host.memory import available_memory
from firstlight.packed.layout import (
    PRELUDE_BYTES,
    DamagedPackedFile,
    PackedHeader,
    decode_header,
    header_bytes,
)
from firstlight.packed.locks import is_still_at, lock_shared, wait_for

_PATIENCE_SECONDS = 5.0
"""Others have a finished file alone only while they decide whether to delete it."""

_CHECKED_BYTES = 1 << 24


class PackedFile:
    """A packed file, mapped read-only. As long as any array made from it lives, it is marked as in
    use, and no firstlight deletes it.

    Attributes:
        path: where it lies.
        header: what it holds.
    """

    def __init__(self, path: Path, header: PackedHeader, content: Bytes) -> None:
        self.path = path
        self.header = header
        self._content = content
        self._placed = {each.tensor.name: each for each in header.tensors}

    def data(self, name: str) -> Bytes:
        """A tensor's bytes, uint8 [nbytes], read-only and at a multiple of 4096 bytes."""
        placed = self._placed[name]
        return self._content[placed.offset : placed.offset + placed.tensor.nbytes]


def open_packed(path: Path, use: bool = True) -> PackedFile:
    """Open, check and map; only the header is read.

    Args:
        use: note that the file was used now.

    Raises:
        FileNotFoundError: there is none.
        DamagedPackedFile: it is not whole, or not what it says.
        OSError: the system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not wait_for(lambda: lock_shared(descriptor), _PATIENCE_SECONDS):
            raise BlockingIOError(0, "another process keeps it to itself", str(path))
        if not is_still_at(descriptor, path):
            raise FileNotFoundError(path)
        header = _read_header(descriptor)
        # The lock lives as long as a descriptor of the file does.
        mapping = map_file(descriptor, header.size, keep_open=True)
        if use:
            os.utime(descriptor)
            # The disk begins to read, and nobody waits for it; unless it would be for nothing.
            if hasattr(os, "posix_fadvise") and header.size < available_memory():
                os.posix_fadvise(descriptor, 0, header.size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
    return PackedFile(path, header, np.frombuffer(mapping, np.uint8))


def read_header(path: Path) -> PackedHeader:
    """What a file holds; raises as `open_packed`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _read_header(descriptor)
    finally:
        os.close(descriptor)


def _read_header(descriptor: int) -> PackedHeader:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedPackedFile("is no regular file")
    prelude = os.pread(descriptor, PRELUDE_BYTES, 0)
    length = header_bytes(prelude, status.st_size)
    text = os.pread(descriptor, length, PRELUDE_BYTES)
    return decode_header(prelude, text, status.st_size)


def damaged_tensors(
    packed: PackedFile, advance: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Names of the tensors whose bytes do not match their checksums. Reads the whole file.

    Args:
        advance: told of the bytes read.
    """
    damaged = []
    for each in packed.header.tensors:
        data = packed.data(each.tensor.name)
        if checksum(data, advance) != each.checksum:
            damaged.append(each.tensor.name)
    return damaged


def checksum(data: Bytes, advance: Callable[[int], None] = lambda _: None) -> int:
    """CRC-32 (ISO 3309, as in zlib) of the bytes."""
    value = 0
    for start in range(0, len(data), _CHECKED_BYTES):
        part = data[start : start + _CHECKED_BYTES]
        value = zlib.crc32(part.data, value)
        advance(len(part))
    return value
