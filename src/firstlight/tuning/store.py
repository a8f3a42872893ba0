"""What was tuned, kept in the cache directory: one file for each device and build of firstlight.

A file is replaced as a whole after each shape, so that an interrupted run loses the shape that it
was at and nothing else. Models share it: what was found for a shape serves every model that has it.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firstlight import __version__
from firstlight.backends.base import Backend
from firstlight.backends.kernel import Choice
from firstlight.host.cache import cache_directory, write_atomically
from firstlight.ops.shape import Shape

_LAYOUT = 1
"""Raised whenever the meaning of a stored entry changes."""

Key = tuple[str, Shape]


class TuningWarning(UserWarning):
    """Something stored about the tuning of a device cannot be used."""


@dataclass(frozen=True)
class Entry:
    """What is known of one shape.

    Attributes:
        op, shape: which.
        default: what runs without tuning.
        choice: what to use.
        ratio: seconds of the choice over seconds of the default, measured in pairs.
        seconds: of one call as chosen.
        candidates: how many there were to choose from.
        decided: whether more time would hardly say otherwise.
        effort: seconds that there were for it.
    """

    op: str
    shape: Shape
    default: Choice
    choice: Choice
    ratio: float
    seconds: float
    candidates: int
    decided: bool
    effort: float

    @property
    def key(self) -> Key:
        return self.op, self.shape


class Store:
    """The entries of one device.

    Args:
        backend: the device, its kernels and their build: all that timings depend on.
        directory: where files are; the cache directory's `tuning` if None.

    Attributes:
        path: the device's file.
        entries: what is known, by (op, shape).
    """

    def __init__(self, backend: Backend, directory: Path | None = None) -> None:
        self._backend = backend
        self._key = {
            "layout": _LAYOUT,
            "version": __version__,
            "device": backend.device_key(),
            "identity": backend.identity(),
        }
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:24]
        self.path = (
            directory or cache_directory() / "tuning"
        ) / f"{backend.name.replace(':', '-')}-{name}.json"
        self.entries: dict[Key, Entry] = {entry.key: entry for entry in self._read()}

    def add(self, entry: Entry) -> None:
        """Keep an entry, on disk too.

        Raises:
            FirstlightError: the file cannot be written.
        """
        # Another process may have tuned another model meanwhile.
        self.entries = {each.key: each for each in self._read()} | self.entries
        self.entries[entry.key] = entry
        self._write()

    def forget(self, keys: Iterable[Key]) -> None:
        """Drop what is known of these shapes."""
        self.entries = {each.key: each for each in self._read()} | self.entries
        for key in keys:
            self.entries.pop(key, None)
        self._write()

    def apply(self) -> int:
        """Have the backend use what was chosen where that is not its default; how many shapes."""
        applied = 0
        for entry in self.entries.values():
            if entry.choice != entry.default:
                self._backend.apply_tuning(entry.op, entry.shape, entry.choice)
                applied += 1
        return applied

    def _write(self) -> None:
        content = {"key": self._key, "entries": [asdict(each) for each in self.entries.values()]}
        data = json.dumps(content, indent=1).encode()
        write_atomically(self.path, lambda file: file.write(data))

    def _read(self) -> list[Entry]:
        """What the file holds; nothing, with a warning, unless it makes sense."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._warn(error.strerror or str(error))
            return []
        try:
            content = json.loads(data)
            if content["key"] != self._key:
                raise ValueError("it belongs to another device or version")
            return [_entry(stored) for stored in content["entries"] if self._has(stored)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._warn(f"{type(error).__name__}: {error}")
            return []

    def _has(self, stored: dict[str, Any]) -> bool:
        """Whether the choice can be had here: the trust check may have left its kernel out."""
        try:
            return self._backend.ready(stored["op"], _choice(stored["choice"])) is not None
        except KeyError:
            return False

    def _warn(self, why: str) -> None:
        warnings.warn(
            f"{self.path}: what was tuned on this device cannot be read and is ignored ({why}). "
            "Delete the file and run `firstlight tune` again",
            TuningWarning,
            stacklevel=4,
        )


def _entry(stored: dict[str, Any]) -> Entry:
    """An entry as JSON gives it; ValueError, TypeError or KeyError where it makes no sense."""
    numbers = {name: float(stored[name]) for name in ("ratio", "seconds", "effort")}
    if not all(math.isfinite(number) and number >= 0 for number in numbers.values()):
        raise ValueError("a figure is out of range")
    return Entry(
        op=str(stored["op"]),
        shape=tuple(_plain(part) for part in stored["shape"]),
        default=_choice(stored["default"]),
        choice=_choice(stored["choice"]),
        candidates=int(stored["candidates"]),
        decided=bool(stored["decided"]),
        **numbers,
    )


def _choice(stored: dict[str, Any]) -> Choice:
    parameters = tuple((str(name), _plain(value)) for name, value in stored["parameters"])
    return Choice(str(stored["kernel"]), parameters)


def _plain(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is neither a whole number nor a word")
    return value


def apply_tuning(backend: Backend) -> Store | None:
    """Have a backend run as tuned before; None where it has nothing to tune."""
    if not backend.kernels():
        return None
    store = Store(backend)
    store.apply()
    return store
