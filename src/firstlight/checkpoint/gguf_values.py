"""The values in a GGUF header: walking over them, and arrays of strings left where they lie."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint.files import DOWNLOAD_AGAIN, shown
from firstlight.errors import CheckpointError

MOST_TEXT = 128 << 20
"""Bytes, in all strings of a header together. A whole tokenizer.json may lie in one of them; those
reach some tens of megabytes."""

MOST_STRINGS = 1 << 23
"""In all arrays of a file together. Their lengths must be walked one by one; a real vocabulary
with its merges has under a million."""

DEEPEST_ARRAY = 8
MOST_NESTED_ARRAYS = 1 << 16

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_ITEMS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1",
          10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
_STRING = 8
_ARRAY = 9

_length = struct.Struct("<Q").unpack_from


class StringArray(Sequence[str]):
    """An array of strings in a GGUF file, decoded only where it is asked for.

    Iteration and indexing give str; bytes that are not UTF-8 become U+FFFD there, and `raw`
    gives the bytes themselves. The array keeps its file mapped.
    """

    def __init__(self, buffer: memoryview, start: int, count: int, stop: int) -> None:
        """`buffer[start:stop]` is `count` times a 64-bit length and so many bytes, checked."""
        self._buffer = buffer
        self._start = start
        self._count = count
        self._stop = stop
        self._positions: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"string {index} of {self._count}")
        position = int(self._located()[index])
        length = _length(self._buffer, position)[0]
        return str(self._buffer[position + 8 : position + 8 + length], "utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (item.decode("utf-8", "replace") for item in self.raw())

    def __repr__(self) -> str:
        return f"StringArray({self._count} strings)"

    def raw(self) -> list[bytes]:
        """All strings as they lie in the file, in one pass (0.1 s for 262,144)."""
        data = self._buffer[self._start : self._stop].tobytes()
        items = []
        position = 0
        for _ in range(self._count):
            begin = position + 8
            position = begin + _length(data, position)[0]
            items.append(data[begin:position])
        return items

    def find(self, texts: Iterable[str]) -> dict[str, int]:
        """Index of the first string equal to each text, found without decoding the others."""
        data = self._buffer[self._start : self._stop].tobytes()
        candidates: dict[int, str] = {}
        for text in texts:
            wanted = text.encode()
            pattern = len(wanted).to_bytes(8, "little") + wanted
            position = data.find(pattern)
            while position >= 0:
                candidates[position] = text
                position = data.find(pattern, position + 1)
        # The bytes may also lie within a longer string; only where a string starts do they count.
        found: dict[str, int] = {}
        last = max(candidates, default=-1)
        index = position = 0
        while position <= last:
            if position in candidates:
                found.setdefault(candidates[position], index)
            position += 8 + _length(data, position)[0]
            index += 1
        return found

    def _located(self) -> NDArray[np.int64]:
        """Position of each string's length field."""
        if self._positions is None:
            positions = []
            position = self._start
            for _ in range(self._count):
                positions.append(position)
                position += 8 + _length(self._buffer, position)[0]
            self._positions = np.array(positions, np.int64)
        return self._positions


class Cursor:
    """A place in a GGUF header, moved on by reading; every read is checked against the file."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self._text_left = MOST_TEXT
        self._strings_left = MOST_STRINGS
        self._arrays_left = MOST_NESTED_ARRAYS

    def bad(self, reason: str, remedy: str = DOWNLOAD_AGAIN) -> CheckpointError:
        """The error for something wrong near this place."""
        return CheckpointError(self.path, reason, remedy)

    def number(self, layout: str, what: str) -> Any:
        """One value of a struct layout; messages call it `what`."""
        try:
            (value,) = struct.unpack_from(layout, self.data, self.position)
        except struct.error:
            raise self.bad(
                f"is cut short: it ends at byte {len(self.data):,}, within {what}"
            ) from None
        self.position += struct.calcsize(layout)
        return value

    def string(self, what: str) -> bytes:
        """A length and so many bytes."""
        length = self.number("<Q", f"the length of {what}")
        view = self._take(length, what)
        self._spend_text(length, what)
        return view.tobytes()

    def name(self, what: str) -> str:
        """A string that must be UTF-8."""
        raw = self.string(what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.bad(f"has {what} that is not UTF-8 text: {shown(raw[:60])}") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """One metadata value.

        A scalar is an int, float, bool or str. An array of numbers is a read-only NumPy view
        of the file (of booleans: uint8), one of strings a `StringArray`, one of arrays a list.
        """
        if kind in _SCALARS:
            value = self.number(_SCALARS[kind], what)
            if isinstance(value, float) and not math.isfinite(value):
                raise self.bad(f"gives {what} the value {value}, which is no usable number")
            return value
        if kind == _STRING:
            return self.string(what).decode("utf-8", "replace")
        if kind != _ARRAY:
            raise self.bad(f"gives {what} the value type {kind}, which GGUF does not define")
        item = self.number("<I", f"the item type of {what}")
        count = self.number("<Q", f"the length of {what}")
        if item in _ITEMS:
            dtype = np.dtype(_ITEMS[item])
            if count > (len(self.data) - self.position) // dtype.itemsize:
                raise self._overlong(what, count)
            view = self._take(count * dtype.itemsize, what)
            return np.frombuffer(view, dtype) if count else np.empty(0, dtype)
        if item == _STRING:
            return self._strings(count, what)
        if item != _ARRAY:
            raise self.bad(f"gives {what} the item type {item}, which GGUF does not define")
        if depth == DEEPEST_ARRAY:
            raise self.bad(f"nests the arrays of {what} over {DEEPEST_ARRAY} deep")
        self._arrays_left -= count
        if count > (len(self.data) - self.position) // 12 or self._arrays_left < 0:
            raise self._overlong(what, count)
        return [self.value(_ARRAY, what, depth + 1) for _ in range(count)]

    def _strings(self, count: int, what: str) -> StringArray:
        self._strings_left -= count
        if count > (len(self.data) - self.position) // 8 or self._strings_left < 0:
            raise self._overlong(what, count)
        start = position = self.position
        data = self.data
        try:
            for _ in range(count):
                position += 8 + _length(data, position)[0]
        except (struct.error, OverflowError, IndexError):
            position = len(data) + 1
        if position > len(data):
            raise self.bad(f"is cut short, or lies about its lengths: {what} runs past its end")
        self.position = position
        self._spend_text(position - start, what)
        return StringArray(data, start, count, position)

    def _spend_text(self, count: int, what: str) -> None:
        self._text_left -= count
        if self._text_left < 0:
            raise self.bad(f"has over {MOST_TEXT:,} bytes of text in its header, up to {what}")

    def _overlong(self, what: str, count: int) -> CheckpointError:
        return self.bad(
            f"is cut short, or lies about its lengths: {what} would have {count:,} items in the "
            f"{len(self.data) - self.position:,} bytes that are left"
        )

    def _take(self, count: int, what: str) -> memoryview:
        if count > len(self.data) - self.position:
            raise self.bad(f"is cut short: it ends at byte {len(self.data):,}, within {what}")
        start = self.position
        self.position += count
        return self.data[start : self.position]
