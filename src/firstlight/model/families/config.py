"""Reading a model's config with every value checked: type, range, presence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from firstlight.errors import CheckpointError, UnsupportedModelError

# No published model comes near these; a config beyond them is damaged or hostile.
_LARGEST_SIZE = 1 << 31
_SMALLEST, _LARGEST = 1e-20, 1e20
_LONGEST_SHOWN = 80
_REQUIRED = object()


class Config:
    """A config's values by key. Every reader names the file and the key when it objects.

    A key that is absent or null takes the default; without one, that is an error.

    Args:
        subject: the file, for messages.
        values: by key.
        name: what messages call a key; its own name unless given.
    """

    def __init__(
        self,
        subject: object,
        values: Mapping[str, Any],
        name: Callable[[str], str] = lambda key: key,
    ) -> None:
        self.subject = subject
        self.values = values
        self.name = name

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same where keys that are absent take these values. Null stays null."""
        return Config(self.subject, {**defaults, **self.values}, self.name)

    def with_values(self, values: Mapping[str, Any]) -> Config:
        """The same where these keys have these values."""
        return Config(self.subject, {**self.values, **values}, self.name)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def integer(
        self, key: str, default: Any = _REQUIRED, least: int = 1, most: int = _LARGEST_SIZE
    ) -> int:
        """A whole number in [least, most]."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"is {shown(value)}, not a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"is {shown(value)}, not a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, f"is {shown(value)}, not a finite number")
        return number

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """A number above zero, and neither so small nor so large that nothing can be computed."""
        number = self.number(key, default)
        if not _SMALLEST <= number <= _LARGEST:
            raise self.error(key, f"is {number}, not from {_SMALLEST} to {_LARGEST}")
        return number

    def positive_or_none(self, key: str) -> float | None:
        """A number as `positive` takes it, or None where the key is absent or null."""
        return self.positive(key) if self.has(key) else None

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, not true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {shown(value)}, not a string")
        return value

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """A list of `count` strings."""
        value = self._list(key, count)
        if not all(isinstance(item, str) for item in value):
            raise self.error(key, "is not a list of strings")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers, each as `positive` takes it."""
        value = self._list(key, count)
        entries = Config(self.subject, {f"{key}[{i}]": item for i, item in enumerate(value)})
        return tuple(entries.positive(f"{key}[{i}]") for i in range(count))

    def indices(self, key: str) -> frozenset[int]:
        """A list of whole numbers from 0, none where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list | tuple):
            raise self.error(key, f"is {shown(value)}, not a list")
        if not all(type(item) is int and item >= 0 for item in value):
            raise self.error(key, "is not a list of whole numbers from 0")
        return frozenset(value)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """The first `count` entries of a list of whole numbers from 0."""
        value = self._list(key, count, longer=True)[:count]
        if not all(type(item) is int and 0 <= item <= _LARGEST_SIZE for item in value):
            raise self.error(key, "is not a list of whole numbers from 0")
        return tuple(value)

    def switches(self, key: str, count: int) -> tuple[bool, ...]:
        """The first `count` entries of a list of zeros and ones."""
        value = self._list(key, count, longer=True)[:count]
        if not all(isinstance(item, int) and item in (0, 1) for item in value):
            raise self.error(key, "is not a list of zeros and ones")
        return tuple(bool(item) for item in value)

    def section(self, key: str) -> Config | None:
        """A nested object, or None where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, f"is {shown(value)}, not an object")
        return Config(self.subject, value)

    def error(self, key: str, reason: str) -> CheckpointError:
        """An error about a key whose value makes no sense, to be raised."""
        return CheckpointError(
            self.subject,
            f"{self.name(key)!r} in the config {reason}",
            "Fetch the config again from where the model was published",
        )

    def unsupported(self, key: str, reason: str | None = None) -> UnsupportedModelError:
        """An error about a key whose value asks for what firstlight does not have, to be raised."""
        reason = reason or f"is {shown(self.values.get(key))}"
        return UnsupportedModelError(
            self.subject,
            f"{self.name(key)!r} in the config {reason}, which firstlight does not support",
            "Use another model, or open an issue that names this one and the key",
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, "is missing")
            return default
        return value

    def _list(self, key: str, count: int, longer: bool = False) -> list[Any]:
        value = self._value(key, _REQUIRED)
        if not isinstance(value, list | tuple):
            raise self.error(key, f"is {shown(value)}, not a list")
        if len(value) < count or (len(value) > count and not longer):
            raise self.error(key, f"has {len(value)} entries, not {count}")
        return list(value)


def shown(value: object) -> str:
    """A value as messages show it: escaped, for a stranger chose it, and not at length."""
    # The type stands for a long value, whose text alone could fill memory.
    if isinstance(value, str | bytes):
        value = value[: _LONGEST_SHOWN + 1]
    elif not isinstance(value, bool | int | float | type(None)):
        return f"of type {type(value).__name__}"
    elif isinstance(value, int) and value.bit_length() > 4 * _LONGEST_SHOWN:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
