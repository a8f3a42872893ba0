"""Reading a model's config with every value checked: type, range, presence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from firstlight.errors import CheckpointError

# No published model comes near these; a config beyond them is damaged or hostile.
_LARGEST_SIZE = 1 << 31
_REQUIRED = object()


class Config:
    """A config's values by key. Every reader names the file and the key when it objects.

    A key that is absent or null takes the default; without one, that is an error.
    """

    def __init__(self, subject: object, values: Mapping[str, Any]) -> None:
        self.subject = subject
        self.values = values

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def integer(
        self, key: str, default: Any = _REQUIRED, least: int = 1, most: int = _LARGEST_SIZE
    ) -> int:
        """A whole number in [least, most]."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"is {value!r}, not a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, least: float = -math.inf) -> float:
        """A finite number, at least `least`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"is {value!r}, not a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < least:
            raise self.error(key, f"is {value!r}, not a finite number of at least {least}")
        return number

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number above zero."""
        number = self.number(key, default)
        if number <= 0:
            raise self.error(key, f"is {number}, not above zero")
        return number

    def positive_or_none(self, key: str) -> float | None:
        """A finite number above zero, or None where the key is absent or null."""
        return self.positive(key) if self.has(key) else None

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r}, not true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {value!r}, not a string")
        return value

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """A list of `count` strings."""
        value = self._list(key, count)
        if not all(isinstance(item, str) for item in value):
            raise self.error(key, "is not a list of strings")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers above zero."""
        value = self._list(key, count)
        entries = Config(self.subject, {f"{key}[{i}]": item for i, item in enumerate(value)})
        return tuple(entries.positive(f"{key}[{i}]") for i in range(count))

    def section(self, key: str) -> Config | None:
        """A nested object, or None where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "is not an object")
        return Config(self.subject, value)

    def error(self, key: str, reason: str) -> CheckpointError:
        """An error about one key, to be raised."""
        return CheckpointError(
            self.subject,
            f"{key!r} in the config {reason}",
            "Fetch the config again from where the model was published",
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, "is missing")
            return default
        return value

    def _list(self, key: str, count: int) -> list[Any]:
        value = self._value(key, _REQUIRED)
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self.error(key, f"is not a list of {count} entries")
        return list(value)
