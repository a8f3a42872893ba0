"""Files mapped into memory, and parts of them held there whatever the system needs memory for.

Pages of a mapped file are the first that a system takes back, which is what lets a model larger
than memory run. But it takes back what was used longest ago, and a model that reads its weights in
the same order for every token finds none of them when it comes round again. So the parts that are
used most are held: they become copies that belong to this process, at the same addresses. No
privilege is needed, and nothing that points at them notices.

Linux alone: elsewhere all of it stays as it is mapped. Sources: mmap(2), madvise(2), mprotect(2).
"""

from __future__ import annotations

import mmap
import sys
from functools import cache
from typing import Any

import numpy as np

from firstlight.host.huge_pages import ask_for_huge_pages

PAGE_BYTES = mmap.PAGESIZE


def map_file(descriptor: int, size: int, keep_open: bool = False) -> mmap.mmap:
    """A file's first `size` bytes, read-only, in huge pages where the system has them.

    Args:
        keep_open: the mapping keeps the file open, with a descriptor of its own. (Before Python
            3.13 it does so anyway.)

    Raises:
        OSError, ValueError: the system refuses.
    """
    options: dict[str, Any] = {"access": mmap.ACCESS_READ}
    if can_hold():
        # Private, so that parts can become copies. Unwritable, it counts as a file all the same.
        options = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
        if sys.version_info >= (3, 13):
            options["trackfd"] = keep_open
    mapping = mmap.mmap(descriptor, size, **options)
    ask_for_huge_pages(mapping)
    return mapping


def can_hold() -> bool:
    """Whether parts of mapped files can be held here."""
    return sys.platform == "linux"


def hold(address: int, size: int) -> int:
    """Make copies of the whole pages within a part of a file mapped by `map_file`.

    Returns:
        Bytes that are held; 0 where the system refuses. Other threads may read meanwhile.
    """
    start, count = _whole_pages(address, size)
    if not count or not can_hold():
        return 0
    import ctypes

    system = _system()
    # Read ahead first: one long reading of the disk.
    system.madvise(start, count, mmap.MADV_WILLNEED)
    if system.mprotect(start, count, mmap.PROT_READ | mmap.PROT_WRITE):
        return 0
    try:
        pages = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(start))[::PAGE_BYTES]
        np.bitwise_or(pages, 0, out=pages)  # written with what is there, a page becomes a copy
    finally:
        system.mprotect(start, count, mmap.PROT_READ)
    return count


def let_go(address: int, size: int) -> None:
    """Give up what `hold` made: the pages are the file's again."""
    start, count = _whole_pages(address, size)
    if count and can_hold():
        _system().madvise(start, count, mmap.MADV_DONTNEED)


def _whole_pages(address: int, size: int) -> tuple[int, int]:
    start = -(-address // PAGE_BYTES) * PAGE_BYTES
    return start, max(0, (address + size) // PAGE_BYTES * PAGE_BYTES - start)


@cache
def _system() -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    for name in ("madvise", "mprotect"):
        function = getattr(library, name)
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        function.restype = ctypes.c_int
    return library
