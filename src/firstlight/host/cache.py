"""Where firstlight keeps what it can rebuild, and how any file is written: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from firstlight.errors import FirstlightError


def cache_directory() -> Path:
    """The user's cache directory for firstlight; it may not exist yet.

    The environment variable FIRSTLIGHT_CACHE names another one. Everything in it can be deleted
    at any time.

    Raises:
        FirstlightError: the variable names a home directory that nobody has.
    """
    chosen = os.environ.get("FIRSTLIGHT_CACHE")
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise FirstlightError(
                "FIRSTLIGHT_CACHE",
                f"names the home directory of an unknown user ({chosen})",
                "Set it to a directory's path",
            ) from error
    import platformdirs

    return platformdirs.user_cache_path("firstlight", appauthor=False)


def write_atomically(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Create or replace `path` with what `writer` writes, once all of it is written.

    The bytes go to a temporary name in the same directory, which is created if missing; the name
    is removed if `writer` fails or is interrupted, and then `path` is as it was before.

    Raises:
        FirstlightError: the operating system refuses (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            writer(file)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _unwritable(path: Path, error: OSError) -> FirstlightError:
    return FirstlightError(
        path,
        f"cannot be written ({error.strerror or error})",
        "Make room there or allow writing, or set FIRSTLIGHT_CACHE to another directory "
        "if this is the cache",
    )
