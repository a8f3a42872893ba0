"""How large the tiles of attention are: as much as a chip's registers and nearest memory hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ProductKind = Literal["bfloat16", "parts", "float32"]

SMALLEST = 16
"""Of a product's three sides, as `tl.dot` asks of them on every chip."""

_MOST_QUERIES: dict[ProductKind, int] = {"bfloat16": 128, "parts": 32, "float32": 32}
_MOST_SUMS: dict[ProductKind, int] = {"bfloat16": 32 * 512, "parts": 32 * 512, "float32": 32 * 256}
"""Of one tile: sums lie in registers, as does what products of these kinds need beside them."""


@dataclass(frozen=True)
class Columns:
    """The columns of an entry as powers of two: `low` from the first on, and `rest`, or none."""

    size: int
    low: int
    rest: int

    @property
    def padded(self) -> int:
        return self.low + self.rest


def columns(size: int) -> Columns:
    """As few as can be: 576 are multiplied as 512 and 64, not as 1,024."""
    whole = power_of_two(size)
    low = whole // 2
    rest = power_of_two(size - low)
    if size == whole or low < SMALLEST or low + rest >= whole:
        return Columns(size, whole, 0)
    return Columns(size, low, rest)


def shared_columns(size: int, value_size: int) -> tuple[Columns, Columns]:
    """Of entries whose first `value_size` columns are the values, which are cut as the keys are."""
    key, value = columns(size), columns(value_size)
    rest = key.rest if value_size > key.low else 0
    return key, replace(value, low=key.low, rest=rest)


def power_of_two(number: int) -> int:
    """The power of two not below it that a product's side can have."""
    return max(SMALLEST, 1 << (max(1, number) - 1).bit_length())


@dataclass(frozen=True)
class Plan:
    """The sizes of one launch.

    Attributes:
        tile: queries of a program.
        block: positions that are read at a time.
        warps, stages: as Triton's launches take them.
    """

    tile: int
    block: int
    warps: int
    stages: int


def plan(
    queries: int, key: Columns, value: Columns, shared: bool, kind: ProductKind, memory: int
) -> Plan:
    """Sizes for attention of a device.

    Args:
        queries: how many a tile may have at most.
        key, value: of an entry.
        shared: the values are columns of the key.
        kind: of products.
        memory: bytes of memory that a program can share among its threads.
    """
    item = 4 if kind == "float32" else 2
    query_copies = 3 if kind == "parts" else 1
    entry = item * (key.padded + (0 if shared else value.padded))
    tile = min(power_of_two(queries), _MOST_QUERIES[kind])
    while tile > SMALLEST and tile * value.padded > _MOST_SUMS[kind]:
        tile //= 2
    stages, block = 3, 64 if kind == "bfloat16" else 32
    while _bytes(tile, block, stages, entry, item * query_copies * key.padded) > memory:
        if stages > 2:
            stages -= 1
        elif block > 2 * SMALLEST:
            block //= 2
        elif tile > SMALLEST:
            tile //= 2
        elif block > SMALLEST:
            block //= 2
        elif stages > 1:
            stages -= 1
        else:
            break
    warps = 8 if tile >= 128 or tile * value.padded > 64 * 128 else 4
    return Plan(tile, block, warps, stages)


def _bytes(tile: int, block: int, stages: int, entry: int, query: int) -> int:
    # Weights pass through the same memory between the two products.
    return tile * query + stages * block * entry + 4 * tile * block
