"""SHA-256 of a checkpoint's weight files, remembered so that gigabytes are hashed once.

A remembered digest holds as long as the file has the same path, device, inode, size, and times of
change (of its content and of its inode, in nanoseconds). A blob of the hub's cache is named by its
digest, and was compared with it when it came (checkpoint/hub_cache.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.checkpoint.files import open_regular
from firstlight.errors import CheckpointError, FirstlightError
from firstlight.host.cache import cache_directory, write_atomically
from firstlight.progress import ProgressFactory, no_progress

_LAYOUT = 1
_MOST_REMEMBERED = 4096
_BLOCK_BYTES = 1 << 20
_SETTLED_SECONDS = 0.1
"""A file system's clock may stand still for some milliseconds, and a change after a hash must show
in the time of change: what changed just now is hashed again the next time."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileState:
    """What tells a file from its other versions without reading it."""

    device: int
    inode: int
    size: int
    changed_ns: int
    inode_changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        status = path.stat()
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


def weights_digest(
    files: Sequence[Path],
    *,
    progress: ProgressFactory = no_progress,
    index: Path | None = None,
) -> str:
    """One hexadecimal SHA-256 for the contents of all files, in their order.

    Args:
        files: a checkpoint's weight files.
        progress: told of the bytes hashed.
        index: the file that remembers digests; the cache directory's `digests.json` if None. One
            that cannot be read or written is done without.

    Raises:
        CheckpointError: a file is missing, unreadable, or changes while it is read.
    """
    index = index or cache_directory() / "digests.json"
    known = _read_index(index)
    digests: dict[str, str] = {}
    fresh: dict[str, tuple[FileState, str]] = {}
    unknown: list[Path] = []
    for path in map(_resolved, files):
        digest = _name_of_blob(path) or _remembered(known, path)
        if digest is None:
            unknown.append(path)
        else:
            digests[str(path)] = digest
    if unknown:
        started = time.time_ns()
        with progress("Hashing the weights (once)", total=sum(map(_size, unknown))) as advance:
            for path in unknown:
                state, digest = _hash(path, advance)
                digests[str(path)] = digest
                changed = max(state.changed_ns, state.inode_changed_ns)
                if changed < started - _SETTLED_SECONDS * 1e9:
                    fresh[str(path)] = state, digest
        _remember(index, fresh)
    together = hashlib.sha256()
    for path in map(_resolved, files):
        together.update(f"{digests[str(path)]}\n".encode())
    return together.hexdigest()


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _name_of_blob(path: Path) -> str | None:
    """The digest of a large file in a hub cache: .../models--ORG--NAME/blobs/SHA-256."""
    in_cache = path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")
    return path.name if in_cache and _SHA256.fullmatch(path.name) else None


def _remembered(known: Mapping[str, tuple[FileState, str]], path: Path) -> str | None:
    found = known.get(str(path))
    try:
        return found[1] if found is not None and found[0] == FileState.of(path) else None
    except OSError:
        return None


def _hash(path: Path, advance: Callable[[int], None]) -> tuple[FileState, str]:
    digest = hashlib.sha256()
    with open_regular(path) as (file, _):
        before = FileState.of(path)
        block = memoryview(bytearray(_BLOCK_BYTES))
        missing = before.size
        while missing and (count := file.readinto(block[: min(missing, _BLOCK_BYTES)])):
            digest.update(block[:count])
            missing -= count
            advance(count)
        if FileState.of(path) != before:
            raise CheckpointError(
                path, "changed while it was read", "Load it again once nothing writes to it"
            )
    return before, digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_index(path: Path) -> dict[str, tuple[FileState, str]]:
    try:
        content = json.loads(path.read_bytes())
        if content["layout"] != _LAYOUT:
            return {}
        return {
            str(name): (FileState(**state), digest)
            for name, (state, digest) in content["files"].items()
            if _SHA256.fullmatch(digest)
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _remember(path: Path, fresh: Mapping[str, tuple[FileState, str]]) -> None:
    """Add to the index, of which the newest entries are kept."""
    if not fresh:
        return
    known = {name: each for name, each in _read_index(path).items() if name not in fresh}
    known.update(fresh)
    kept = list(known.items())[-_MOST_REMEMBERED:]
    content = {
        "layout": _LAYOUT,
        "files": {name: [vars(state), digest] for name, (state, digest) in kept},
    }
    with contextlib.suppress(FirstlightError):
        write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
