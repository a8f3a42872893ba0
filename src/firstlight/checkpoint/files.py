"""Reading files that may be missing, damaged or hostile.

Every reader of a checkpoint goes through here, so that a missing file, a directory, a named pipe
or a file that is still a Git LFS pointer always ends in the same plain message.
"""

from __future__ import annotations

import io
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstlight.errors import CheckpointError

DOWNLOAD_AGAIN = "Download the file again and compare its size with the one its publisher states"

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def shown(value: object, limit: int = 80) -> str:
    """`value` as a message quotes it: control characters escaped, at most about `limit` long.

    Names inside a checkpoint are chosen by a stranger; printed raw they could drive a terminal.
    """
    quoted = ascii(value[: limit + 1]) if isinstance(value, str) else ascii(reprlib.repr(value))
    if not isinstance(value, str):
        quoted = quoted[1:-1]
    return quoted if len(quoted) <= limit + 2 else quoted[:limit] + "…"


def exists(path: Path) -> bool:
    """Whether something is there; False also for a name that no file could have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[io.FileIO, int]]:
    """`path` opened for reading, without a buffer, and its size in bytes.

    Raises:
        CheckpointError: it is missing, unreadable, or not a regular file (a named pipe would
            block for ever, a device might never end).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(path, "is not a regular file", "Give the path of a file")
        file = io.FileIO(path)
    except FileNotFoundError:
        raise CheckpointError(
            path, "does not exist", "Check the path, or download the file again"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            path, f"cannot be read ({reason})", "Check the file's name and permissions"
        ) from None
    with file:
        yield file, os.fstat(file.fileno()).st_size


def read_exactly(file: io.FileIO, count: int, path: Path) -> bytes:
    """The next `count` bytes of `file`, which the caller knows to be no more than its size."""
    parts = []
    missing = count
    while missing:
        try:
            part = file.read(missing)
        except OSError as error:
            raise CheckpointError(
                path, f"cannot be read ({error.strerror})", "Check the disk the file lies on"
            ) from None
        if not part:
            raise CheckpointError(path, "ended while it was being read", DOWNLOAD_AGAIN)
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_limited(path: Path, limit: int, *, truncate: bool = False) -> bytes:
    """The whole file; a file over `limit` bytes is refused, or cut there with `truncate`.

    Raises:
        CheckpointError: see `open_regular`; or the file is longer than `limit` bytes.
    """
    with open_regular(path) as (file, size):
        if size > limit and not truncate:
            raise CheckpointError(
                path,
                f"has {size:,} bytes; firstlight reads at most {limit:,} of this kind of file",
                "Check that the file is what its name says",
            )
        return read_exactly(file, min(size, limit), path)


def refuse_lfs_pointer(path: Path, first_bytes: bytes) -> None:
    """CheckpointError if the file is the placeholder that `git clone` leaves without Git LFS."""
    if first_bytes.startswith(_LFS_POINTER[: max(len(first_bytes), 8)]):
        raise CheckpointError(
            path,
            "is a Git LFS pointer, not the weights it stands for",
            "Run `git lfs pull` in that folder, or download the model from its hub",
        )
