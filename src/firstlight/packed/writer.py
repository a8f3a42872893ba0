"""Writing a packed file: room first, tensors straight into the mapping, the prelude last."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import numpy as np

from firstlight.formats.base import Bytes
from firstlight.host.memory import available_memory
from firstlight.packed.file import checksum
from firstlight.packed.layout import PRELUDE_BYTES, PackedHeader, PackedTensor

Fill = Callable[[PackedTensor, Bytes], None]
"""Writes a tensor's packed bytes into uint8 [nbytes], which begins at a multiple of 4096 bytes."""


def reserve(descriptor: int, size: int) -> None:
    """Make an open file `size` zero bytes long, with room on disk for each of them.

    Without the room, writing through a mapping would end the process with a bus error.

    Raises:
        OSError: ENOSPC where the disk is too full.
    """
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        part = block[: size - start]
        if os.pwrite(descriptor, part, start) != len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(descriptor: int, header: PackedHeader, fill: Fill) -> None:
    """Fill a reserved file, and bring it to disk.

    The tensors and the header are on disk before the prelude is written that makes the file a
    whole one, so that not even a loss of power leaves a prelude without the rest. Pages of a
    finished tensor leave this process; the system writes them in its own time.

    Raises:
        OSError: the disk fails.
    """
    # Not closed by name: where `fill` fails, its traceback may still hold the array.
    mapping = mmap.mmap(descriptor, header.size)
    # What memory cannot hold until the system writes it is written at once.
    at_once = header.size > available_memory() // 2
    checksums = [
        _write_tensor(mapping, each.offset, each.tensor, fill, at_once) for each in header.tensors
    ]
    prelude, text = header.with_checksums(checksums).encode()
    mapping[PRELUDE_BYTES : PRELUDE_BYTES + len(text)] = text
    _to_disk(mapping, descriptor)
    mapping[:PRELUDE_BYTES] = prelude
    _to_disk(mapping, descriptor)


def _write_tensor(
    mapping: mmap.mmap, offset: int, tensor: PackedTensor, fill: Fill, at_once: bool
) -> int:
    if not tensor.nbytes:
        return 0
    out = np.frombuffer(mapping, np.uint8, tensor.nbytes, offset)
    fill(tensor, out)
    value = checksum(out)
    if at_once:
        mapping.flush(offset, -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    # Of a shared mapping this drops no change, only the pages' place in this process.
    mapping.madvise(mmap.MADV_DONTNEED, offset, tensor.nbytes)
    return value


def _to_disk(mapping: mmap.mmap, descriptor: int) -> None:
    mapping.flush()
    os.fsync(descriptor)
