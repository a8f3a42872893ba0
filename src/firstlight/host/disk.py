"""How fast a file is read that memory does not hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from firstlight.host.mapping import map_file

_WINDOW_BYTES = 8 << 20
_MOST_WINDOWS = 12
_MOST_SECONDS = 0.5


def read_speed(path: Path) -> float | None:
    """Bytes per second of reading a file through a mapping, page by page, from the disk that it
    lies on; None where that cannot be measured. Takes half a second at most, or one window of
    8 MiB, and drops those parts of the file from the system's cache.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        windows = min(_MOST_WINDOWS, size // _WINDOW_BYTES)
        if not windows:
            return None
        content = np.frombuffer(map_file(descriptor, size), np.uint8)
        step = size // windows
        read, seconds = 0, 0.0
        for start in range(0, windows * step, step):
            os.posix_fadvise(descriptor, start, _WINDOW_BYTES, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            content[start : start + _WINDOW_BYTES : 4096].max()
            seconds += time.perf_counter() - begun
            read += _WINDOW_BYTES
            if seconds > _MOST_SECONDS:
                break
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return read / max(seconds, 1e-9)
