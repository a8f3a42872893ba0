"""Random weights in any storage format, including those that firstlight can only read."""

from __future__ import annotations

from functools import cache

import numpy as np

from firstlight.formats.base import Bytes, Format, Weight

# Blocks whose largest magnitude lies in this range are kept: large enough not to vanish beside
# the others in a float32 sum, small enough to stay far from overflow.
_SMALLEST, _LARGEST = 2.0**-3, 2.0**3
_DRAWN_BLOCKS = 1024
_ATTEMPTS = 256


def random_weight(
    format: Format, rows: int, columns: int, generator: np.random.Generator
) -> Weight:
    """A weight [rows, columns] with finite values of magnitudes around one.

    Where the format has an encoder the values are normally distributed. Elsewhere blocks of random
    bytes are drawn, and those that decode to sensible values make up the weight; so a new format
    needs nothing here.
    """
    if format.encode is not None:
        values = generator.standard_normal((rows, columns), dtype=np.float32)
        data = format.encode(values).reshape(rows, format.row_bytes(columns))
    else:
        blocks = rows * (format.row_bytes(columns) // format.block_bytes)
        sensible = _sensible_blocks(format)
        chosen = sensible[generator.integers(0, len(sensible), blocks)]
        data = chosen.reshape(rows, format.row_bytes(columns))
    return Weight(format, (rows, columns), np.ascontiguousarray(data), f"random {format.name}")


@cache
def _sensible_blocks(format: Format) -> Bytes:
    """At least 64 different blocks [blocks, block_bytes] with values of ordinary size."""
    generator = np.random.default_rng(format.block_bytes)
    found: list[Bytes] = []
    for _ in range(_ATTEMPTS):
        shape = (_DRAWN_BLOCKS, format.block_bytes)
        blocks = generator.integers(0, 256, shape, dtype=np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(format.decode(blocks)).max(axis=1)
        found.append(blocks[(largest >= _SMALLEST) & (largest <= _LARGEST)])
        if sum(map(len, found)) >= 64:
            return np.concatenate(found)
    raise RuntimeError(f"no random {format.name} block decodes to values of ordinary size")
