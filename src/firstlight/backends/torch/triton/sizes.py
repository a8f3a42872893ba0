"""Sizes of grids and tiles. Triton's own functions for them are slow on the host."""

from __future__ import annotations


def quotient(count: int, size: int) -> int:
    """How many of a size are needed for so many."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The least power of two that is not below, of 1 or more."""
    return 1 << (count - 1).bit_length()
