"""Large arrays and mapped files in huge pages, so that reading them looks up fewer addresses.

Attention over a long context reads one page of a stream here and one there; with pages of 4 KiB
the processor waits for their addresses, and reads less than half as much in the same time. NumPy
asks the system for huge pages as well, but begins arrays at any address: one of 4 MiB gets half of
what it could have.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Of x86-64, and of Arm with small pages of 4 KiB.
HUGE_PAGE_BYTES = 2 << 20

# Of an array, what is left in small pages at its beginning.
SMALL_BYTES = 64 << 10


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros. Of one that is larger than a huge page, all but the first 64 KiB and what
    lies beyond the last whole huge page is in huge pages, on Linux.

    Memory is taken only as it is written. A model writes the beginning of dozens of such arrays
    for its first token: in huge pages, the system would clear a hundred megabytes for that.
    """
    count, item = math.prod(shape), np.dtype(dtype).itemsize
    size = count * item
    if size < HUGE_PAGE_BYTES + SMALL_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mapping = mmap.mmap(-1, size + HUGE_PAGE_BYTES, flags=flags)
    except OSError:
        return np.zeros(shape, dtype)
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    start = -(address + SMALL_BYTES) % HUGE_PAGE_BYTES
    huge = (size - SMALL_BYTES) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    # A system without huge pages refuses; the memory is as good without.
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE, start + SMALL_BYTES, huge)
    return np.frombuffer(mapping, dtype, count, start).reshape(shape)


def ask_for_huge_pages(mapping: mmap.mmap) -> None:
    """Have a mapped file's pages read in huge pieces, and looked up as such, where the system can.

    Linux does so for what it still has to read, on file systems that know large folios (ext4 since
    6.16, XFS, Btrfs). A step that reads every weight once then takes up to a tenth less time, and
    mapping a file that is in memory already takes a twentieth.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
