"""Shapes: what of an op's arguments decides which way of computing it is fastest.

A shape is made from arguments alone, and two calls of one shape are tuned together. So it holds
the sizes that are a model's own exactly, and those that change from step to step in ranges: a
handful of shapes then covers every batch and every length of context.
"""

from __future__ import annotations

from typing import Any

Shape = tuple[int | str, ...]

# Inclusive ranges of the rows of a batch. A product with one row is bound by memory, one with a
# hundred by arithmetic; the steps between are where kernels change from the one to the other.
_ROW_RANGES = ((0, 1), (2, 4), (5, 16), (17, 64))
MANY_ROWS = "65+"
_NAMES = ("1", *(f"{least}-{most}" for least, most in _ROW_RANGES[1:]))
_ROWS = tuple(
    name
    for name, (least, most) in zip(_NAMES, _ROW_RANGES, strict=True)
    for _ in range(least, most + 1)
)
_MOST = len(_ROWS)
_LEAST_CONTEXT_BITS = 8


def rows_range(rows: int) -> str:
    """The range that a number of rows belongs to: "1", "2-4", "5-16", "17-64" or "65+"."""
    return _ROWS[rows] if rows < _MOST else MANY_ROWS


def rows_of_range(name: str) -> tuple[int, int | None]:
    """(least, most) rows of a range by its name; None: without end."""
    if name == MANY_ROWS:
        return _MOST, None
    return _ROW_RANGES[_NAMES.index(name)]


def context_range(positions: int) -> int:
    """The power of four, not below 256, that a number of positions is rounded up to."""
    bits = (positions - 1).bit_length() if positions > 0 else 0
    return 1 << max(_LEAST_CONTEXT_BITS, bits + (bits & 1))


def describe(shape: Shape) -> str:
    """A shape on one line, for people."""
    return " ".join(map(str, shape))


def storage(weight: Any) -> tuple[str, str]:
    """(format, layout) of a packed weight; a backend that lays weights out anew names its layout
    in an attribute `layout`."""
    format = getattr(weight, "format", None)
    return getattr(format, "name", "?"), getattr(weight, "layout", "stored")
