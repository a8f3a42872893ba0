"""Memory-mapped files: weights are used where they lie, and never copied."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np

from firstlight.checkpoint.files import open_regular
from firstlight.errors import CheckpointError
from firstlight.formats.base import Bytes
from firstlight.host.mapping import map_file


class MappedFile:
    """A file of weights, memory-mapped read-only on first use and at most once.

    The mapping lives as long as any array made from it; there is nothing to close. Cutting the
    file short while it is mapped ends the process with a bus error, as with any mapped file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._lock = threading.Lock()
        self._bytes: Bytes | None = None
        self._mapping: mmap.mmap | None = None

    def bytes(self) -> Bytes:
        """The whole file as a read-only uint8 [size] view; no page is read before it is used.

        Raises:
            CheckpointError: the file is gone, or no longer has the size it had when its header
                was read; or the system refuses another mapping.
        """
        with self._lock:
            if self._bytes is None:
                self._bytes = self._map()
            return self._bytes

    def release(self, offset: int, count: int) -> None:
        """Let go of the pages within `count` bytes from `offset`; they are read again if used.

        They count against this process while they are mapped, even if nobody needs them any more.
        """
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._mapping is not None and last > first and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _map(self) -> Bytes:
        with open_regular(self.path) as (file, size):
            if size != self.size:
                raise CheckpointError(
                    self.path,
                    f"has {size:,} bytes now and had {self.size:,} when its header was read",
                    "Load the model again once nothing is writing to the file",
                )
            if not size:
                return np.empty(0, np.uint8)
            try:
                mapping = map_file(file.fileno(), size)
            except (OSError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    self.path,
                    f"cannot be memory-mapped ({error})",
                    "Raise the limits on open files and address space (`ulimit -n`, `ulimit -v`)",
                ) from None
        self._mapping = mapping
        return np.frombuffer(mapping, np.uint8)
