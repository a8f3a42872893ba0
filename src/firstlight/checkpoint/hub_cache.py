"""The hub's local cache, shared with every other program that uses it, and what we know of it.

Layout: `models--ORG--NAME/` holds `blobs/DIGEST`, the contents; `snapshots/COMMIT/FILE`, links to
them; and `refs/REVISION`, files that hold a commit. A blob's name is the SHA-256 of a large file
and the Git object id of a small one. Source: Hugging Face, "Hub Local Cache",
https://huggingface.co/docs/hub/local-cache.

The cache does not say whether a snapshot is whole or its contents were ever checked. A record of
our own does: one small file a snapshot, in firstlight's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import FirstlightError
from firstlight.host.cache import cache_directory, write_atomically

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RECORD_LAYOUT = 1


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one commit.

    Attributes:
        name: its path in the repository, with forward slashes.
        size: in bytes.
        digest: 64 hexadecimal digits, the SHA-256 of its content, for a file in large-file
            storage; else 40, its Git object id.
    """

    name: str
    size: int
    digest: str

    def hasher(self) -> tuple[Callable[[bytes | memoryview], None], Callable[[], str]]:
        """(feed content in order, hexadecimal digest of what was fed), to compare with `digest`.

        A Git object id is the SHA-1 of a header and the content. Source: Git, "Git Internals -
        Git Objects".
        """
        if len(self.digest) == 64:
            large = hashlib.sha256()
            return large.update, large.hexdigest
        small = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return small.update, small.hexdigest


def is_commit(text: object) -> bool:
    """Whether this is a full commit id."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def is_digest(text: object) -> bool:
    """Whether this can be the name of a blob."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True)
class RepositoryCache:
    """One repository in the hub's local cache.

    Attributes:
        root: the hub cache's directory.
        repository: its id, "ORG/NAME".
    """

    root: Path
    repository: str

    @property
    def directory(self) -> Path:
        return self.root / self._folder

    @property
    def _folder(self) -> str:
        return "models--" + self.repository.replace("/", "--")

    def blob(self, file: HubFile) -> Path:
        return self.directory / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        """Where the beginning of the file's content lies after an interrupted download."""
        return self.blob(file).with_name(f"{file.digest}.firstlight.incomplete")

    def lock(self, file: HubFile) -> Path:
        """The lock file that programs agree on for the time of a download."""
        return self.root / ".locks" / self._folder / f"{file.digest}.lock"

    def snapshot(self, commit: str) -> Path:
        return self.directory / "snapshots" / commit

    def commit(self, revision: str) -> str | None:
        """The commit that a revision was when it was last downloaded, None if it never was."""
        if is_commit(revision):
            return revision
        try:
            text = (self.directory / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return text if is_commit(text) else None

    def remember_commit(self, revision: str, commit: str) -> None:
        if self.commit(revision) != commit:
            path = self.directory / "refs" / revision
            write_atomically(path, lambda file: file.write(commit.encode()))

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether the snapshot holds the file in its full size; links an existing blob if so."""
        place = self.snapshot(commit) / file.name
        with contextlib.suppress(OSError):
            if place.stat().st_size == file.size:
                return True
        with contextlib.suppress(OSError):
            if self.blob(file).stat().st_size == file.size:
                self.link(commit, file)
                return True
        return False

    def link(self, commit: str, file: HubFile) -> None:
        """Make the snapshot's entry for a blob that exists."""
        place = self.snapshot(commit) / file.name
        blob = self.blob(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            # Windows lets only some users make symbolic links; any may give a file two names.
            try:
                place.hardlink_to(blob)
            except OSError:
                shutil.copyfile(blob, place)

    def remove(self, commit: str, file: HubFile) -> None:
        """Remove a file's content, wherever its links lead inside the cache, and its entry."""
        place = self.snapshot(commit) / file.name
        for path in (place.resolve(), self.blob(file), place):
            if self.root.resolve() in path.parent.resolve().parents:
                path.unlink(missing_ok=True)

    def snapshot_files(self, commit: str) -> dict[str, HubFile]:
        """What the snapshot on disk holds, by what its links say; for use without the hub.

        A file that is no link to a blob has no known digest and is left out.
        """
        snapshot = self.snapshot(commit)
        found: dict[str, HubFile] = {}
        for place in snapshot.rglob("*"):
            try:
                digest = place.readlink().name
                size = place.stat().st_size
            except OSError:
                continue
            if is_digest(digest):
                name = place.relative_to(snapshot).as_posix()
                found[name] = HubFile(name, size, digest)
        return found


class VerificationRecord:
    """Which files of one snapshot were verified, and which selections of them are whole.

    A file counts as verified as long as its digest, size and time of change are as they were.

    Args:
        cache: the repository.
        commit: the snapshot's.
    """

    def __init__(self, cache: RepositoryCache, commit: str) -> None:
        self._snapshot = cache.snapshot(commit)
        place = str(self._snapshot.absolute())
        suffix = hashlib.sha256(place.encode()).hexdigest()[:8]
        folder = cache.repository.replace("/", "--")
        self._path = cache_directory() / "hub" / f"{folder}@{commit[:12]}-{suffix}.json"
        self._key = {"layout": _RECORD_LAYOUT, "snapshot": place}
        self._files: dict[str, list[object]] = {}
        self._selections: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            content = json.loads(self._path.read_bytes())
            if content.get("key") == self._key:
                self._files = {str(k): list(v) for k, v in content["files"].items()}
                self._selections = {
                    str(k): [str(name) for name in v] for k, v in content["selections"].items()
                }

    def is_verified(self, file: HubFile) -> bool:
        return self._files.get(file.name) == self._state(file.name, file.digest) is not None

    def selection(self, wanted: str) -> list[str] | None:
        """The files that were chosen for `wanted`, if all are still as they were verified."""
        names = self._selections.get(wanted)
        if not names:
            return None
        for name in names:
            state = self._files.get(name)
            if not state or state != self._state(name, state[0]):
                return None
        return names

    def save(
        self, verified: Sequence[HubFile], selections: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Remember these files as verified, and these selections as whole.

        A record that cannot be written is done without; the next start verifies again.
        """
        for file in verified:
            state = self._state(file.name, file.digest)
            if state is not None:
                self._files[file.name] = state
        for wanted, names in (selections or {}).items():
            self._selections[wanted] = list(names)
        content = {"key": self._key, "files": self._files, "selections": self._selections}
        text = json.dumps(content, indent=1).encode()
        with contextlib.suppress(FirstlightError):
            write_atomically(self._path, lambda file: file.write(text))

    def _state(self, name: str, digest: object) -> list[object] | None:
        try:
            status = (self._snapshot / name).stat()
        except (OSError, ValueError):
            return None
        return [digest, status.st_size, status.st_mtime_ns]
