"""The directory of packed files: found or made, bounded, and shared by processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from firstlight.packed.file import PackedFile, open_packed, read_header
from firstlight.packed.layout import (
    DamagedPackedFile,
    PackedHeader,
    PackedKey,
    PackedTensor,
    place,
)
from firstlight.packed.locks import is_still_at, lock_alone, lock_shared, wait_for
from firstlight.packed.writer import Fill, reserve, write

_PACKED, _UNFINISHED, _LOCK = ".packed", ".unfinished", ".lock"
_LOCK_SECONDS = 10.0


class PackedCacheWarning(UserWarning):
    """Weights are not kept, or were damaged; the model runs all the same."""


class _NotKept(Exception):
    """Why a file cannot be written, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")


@dataclass(frozen=True)
class Entry:
    """One packed file, as a listing shows it.

    Attributes:
        header: None where the file is damaged or another version's.
        problem: why, in that case.
        size: in bytes.
        last_used: seconds since 1970.
        in_use: whether a process has it open.
    """

    path: Path
    header: PackedHeader | None
    problem: str
    size: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class PackedStore:
    """Packed files in one directory.

    Attributes:
        directory: may not exist yet.
        limit: bytes that all files may take together.
        spare: bytes of the disk that are left to others.
        patience: seconds to wait for another process that packs the same weights.
    """

    directory: Path
    limit: int
    spare: int = 0
    patience: float = 60.0

    def get(
        self, key: PackedKey, model: str, tensors: Sequence[PackedTensor], fill: Fill
    ) -> PackedFile | None:
        """The packed file of the key, made with `fill` if there is none.

        Interrupting it at any point, by a signal or an exception of `fill`, leaves no file or a
        whole one. None where it cannot be kept, after a warning that says why.

        Args:
            model: what the user called the model, for listings.
            tensors: what the file must hold; a file that holds anything else is made anew.
        """
        try:
            found = self.find(key, tensors)
            return found if found is not None else self._make(key, model, tensors, fill)
        except _NotKept as error:
            reason = str(error)
        except OSError as error:
            reason = (
                f"{error.strerror or error}. Make room or allow writing there, or set "
                "FIRSTLIGHT_CACHE to another directory"
            )
        warnings.warn(
            f"{self.directory}: packed weights are not kept, and each start packs them in memory: "
            f"{reason}.",
            PackedCacheWarning,
            stacklevel=2,
        )
        return None

    def find(self, key: PackedKey, tensors: Sequence[PackedTensor]) -> PackedFile | None:
        """The packed file of the key, if there is one. One that is damaged is deleted, with a
        warning."""
        path = self.directory / key.file_name()
        try:
            found = open_packed(path)
            if found.header.key != key:
                raise DamagedPackedFile("is of other weights than its name says")
            if [each.tensor for each in found.header.tensors] != list(tensors):
                raise DamagedPackedFile("holds other tensors than are needed")
            return found
        except FileNotFoundError:
            return None
        except DamagedPackedFile as error:
            warnings.warn(
                f"{path} {error}. The weights are packed again.", PackedCacheWarning, stacklevel=3
            )
        path.unlink(missing_ok=True)
        return None

    def _make(
        self, key: PackedKey, model: str, tensors: Sequence[PackedTensor], fill: Fill
    ) -> PackedFile | None:
        header = place(key, model, tensors)
        if header.size > self.limit:
            raise _NotKept(
                f"they take {header.size:,} bytes, and the cache may take {self.limit:,}",
                "Raise the limit with `firstlight cache limit SIZE`",
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / key.file_name()
        unfinished = path.with_name(f".{path.stem}{_UNFINISHED}")
        descriptor: int | None = None
        found: PackedFile | None = None

        def found_or_claimed() -> bool:
            nonlocal descriptor, found
            descriptor = _claim(unfinished)
            # Looked for last: whoever held the claim before may have finished in between.
            found = self.find(key, tensors)
            return found is not None or descriptor is not None

        try:
            if not wait_for(found_or_claimed, self.patience):
                raise _NotKept("another process has long been packing the same ones", "Try later")
            if found is None:
                assert descriptor is not None
                with self._turn():
                    self._make_room(header.size, unfinished)
                    reserve(descriptor, header.size)
                write(descriptor, header, fill)
                unfinished.rename(path)
                # Others may read it from now on, and none may delete it before it is open here.
                lock_shared(descriptor)
                found = open_packed(path)
        finally:
            if descriptor is not None:
                if is_still_at(descriptor, unfinished):
                    unfinished.unlink(missing_ok=True)
                os.close(descriptor)
        return found

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time decides what is deleted and takes room."""
        descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not wait_for(lambda: lock_alone(descriptor), _LOCK_SECONDS):
                raise _NotKept("another process does not let go of the cache", "Try later")
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int, own: Path) -> None:
        """Delete what dead processes left, then what was not used for longest, until a file of
        `size` bytes may be added."""
        self.remove_unfinished(own)
        files = sorted(self._paths(_PACKED), key=_last_used)
        sizes = {path: _size(path) for path in (*files, *self._paths(_UNFINISHED)) if path != own}
        free = shutil.disk_usage(self.directory).free - self.spare - size if size else 0
        room = self.limit - sum(sizes.values()) - size
        if free + sum(sizes[path] for path in files) < 0:
            raise _NotKept(
                f"they take {size:,} bytes, which the disk has not to spare",
                "Make room on it, or set FIRSTLIGHT_CACHE to a directory on another",
            )
        for path in files:
            if min(free, room) >= 0:
                return
            if remove(path):
                free, room = free + sizes[path], room + sizes[path]
        if room < 0:
            raise _NotKept(
                f"they take {size:,} bytes, and what is in use fills the cache's {self.limit:,}",
                "Raise the limit with `firstlight cache limit SIZE`",
            )
        if free < 0:
            raise _NotKept("what is in use fills the disk", "Make room on it")

    def remove_unfinished(self, own: Path | None = None) -> None:
        """Delete what dead processes left; `own` is the caller's."""
        for path in self._paths(_UNFINISHED):
            if path != own:
                remove(path)

    def entries(self) -> list[Entry]:
        """Every packed file, those used last first."""
        return [
            entry
            for path in sorted(self._paths(_PACKED), key=_last_used, reverse=True)
            if (entry := _entry(path)) is not None
        ]

    def trim(self) -> None:
        """Delete what a limit that was lowered no longer allows, as far as it is not in use."""
        if self.directory.is_dir():
            with contextlib.suppress(_NotKept), self._turn():
                self._make_room(0, self.directory)

    def _paths(self, suffix: str) -> list[Path]:
        try:
            return [path for path in self.directory.iterdir() if path.name.endswith(suffix)]
        except OSError:
            return []


def remove(path: Path) -> bool:
    """Delete a file of the store, unless a process has it open; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not lock_alone(descriptor):
            return False
        if is_still_at(descriptor, path):
            path.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _claim(path: Path) -> int | None:
    """Descriptor of the file at `path`, created if missing, that nobody else writes to."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    claimed = False
    try:
        claimed = lock_alone(descriptor) and is_still_at(descriptor, path)
    finally:
        if not claimed:
            os.close(descriptor)
    return descriptor if claimed else None


def _entry(path: Path) -> Entry | None:
    header, problem = None, ""
    try:
        header = read_header(path)
    except DamagedPackedFile as error:
        problem = str(error)
    except OSError as error:
        problem = error.strerror or str(error)
    try:
        status = path.stat()
    except OSError:
        return None
    return Entry(path, header, problem, status.st_size, status.st_mtime, _in_use(path))


def _in_use(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock_alone(descriptor)
    finally:
        os.close(descriptor)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
