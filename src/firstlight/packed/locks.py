"""Locks on open files, which the system lets go when their process ends in any way.

flock(2) belongs to the open file, not to the process: it holds between threads as well, and as
long as any duplicate of the descriptor lives, a memory mapping's own included.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path


def lock_shared(descriptor: int) -> bool:
    """Share the file with other readers; False if somebody has it alone."""
    return _lock(descriptor, fcntl.LOCK_SH)


def lock_alone(descriptor: int) -> bool:
    """Have the file alone; False if anybody else has it."""
    return _lock(descriptor, fcntl.LOCK_EX)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that now has this path: between opening and locking,
    another process may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def wait_for(attempt: Callable[[], bool], seconds: float) -> bool:
    """Try until it succeeds, at least once and for at most so long."""
    deadline = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
