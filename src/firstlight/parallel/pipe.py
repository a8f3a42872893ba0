"""Whole messages over a pipe: four bytes of length, lowest first, and then the message."""

from __future__ import annotations

import os
import select
import time

_LENGTH_BYTES = 4


def write_frame(descriptor: int, message: bytes, seconds: float | None = None) -> None:
    """Write a message.

    Args:
        seconds: how long the other end may take to read on, where the descriptor does not block;
            None: it blocks.

    Raises:
        OSError: the other end is gone.
        TimeoutError: it does not read.
    """
    left = memoryview(len(message).to_bytes(_LENGTH_BYTES, "little") + message)
    deadline = None if seconds is None else time.monotonic() + seconds
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            assert deadline is not None
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select((), (descriptor,), (), wait)[1]:
                raise TimeoutError("the other end does not read") from None


def read_frame(descriptor: int) -> bytes | None:
    """The next message; None where the other end has closed the pipe."""
    length = _read(descriptor, _LENGTH_BYTES)
    return None if length is None else _read(descriptor, int.from_bytes(length, "little"))


def _read(descriptor: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
