"""How much disk packed weights may take."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from firstlight.errors import FirstlightError
from firstlight.host.byte_size import byte_size
from firstlight.host.cache import write_atomically

LIMIT_VARIABLE = "FIRSTLIGHT_CACHE_LIMIT"
_MOST_BY_DEFAULT = 50 << 30
_SHARE_BY_DEFAULT = 0.25
_FILE = "limit"


def parse_size(text: str, subject: str) -> int:
    """Bytes that a size means: "20GiB", "500 MB", "0".

    Raises:
        FirstlightError: it is no size; names `subject`.
    """
    size = byte_size(text)
    if size is None:
        raise FirstlightError(
            subject, f"{text[:40]!r} is no size", "Give a number with a unit, such as 20GiB or 0"
        )
    return size


def limit_of(directory: Path) -> int:
    """Bytes that packed files may take together in `directory`.

    The environment variable FIRSTLIGHT_CACHE_LIMIT, else what `set_limit` was told, else 50 GiB or
    a quarter of the disk, whichever is less.

    Raises:
        FirstlightError: the variable or the remembered limit is no size.
    """
    chosen = os.environ.get(LIMIT_VARIABLE)
    if chosen:
        return parse_size(chosen, LIMIT_VARIABLE)
    path = directory / _FILE
    try:
        return parse_size(path.read_text(encoding="ascii")[:100].strip(), str(path))
    except (OSError, UnicodeDecodeError):
        return min(_MOST_BY_DEFAULT, int(_SHARE_BY_DEFAULT * _disk_size(directory)))


def set_limit(directory: Path, limit: int | None) -> None:
    """Remember a limit in bytes; None goes back to the default. FirstlightError where it cannot."""
    path = directory / _FILE
    if limit is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, lambda file: file.write(f"{limit}\n".encode()))


def _disk_size(directory: Path) -> int:
    """Of the disk that the directory is on, or will be."""
    for place in (directory, *directory.parents):
        try:
            return shutil.disk_usage(place).total
        except OSError:
            continue
    return 0
