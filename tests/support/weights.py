"""Random weights of any storage format, for tests of whatever consumes them."""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Weight
from firstlight.formats.registry import get_format

# Byte offsets of the float16 fields in a block; every other byte may be anything.
_HALF_FIELDS = {
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq1_s": (0,),
    "iq2_xxs": (0,),
    "iq2_xs": (0,),
    "iq2_s": (0,),
    "iq3_xxs": (0,),
    "iq3_s": (0,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
    "tq1_0": (52,),
    "tq2_0": (64,),
}


def random_weight(format_name: str, rows: int, columns: int, seed: int = 0) -> Weight:
    """A finite [rows, columns] weight whose values have a root mean square near 1.

    Where firstlight can encode the format the values are normally distributed; elsewhere codes are
    random bytes and scales are small random numbers of either sign.

    Args:
        format_name: any of known_formats(), or an alias.
        columns: whole blocks of the format.
        seed: equal arguments give equal weights.
    """
    format = get_format(format_name)
    generator = np.random.default_rng(seed)
    shape = (rows, columns)
    name = f"random {format.name} [{rows}, {columns}]"
    if format.encode is not None:
        values = generator.standard_normal(shape, dtype=np.float32)
        return Weight(format, shape, format.encode(values), name)

    row_bytes = format.row_bytes(columns)
    data = generator.integers(0, 256, (rows, row_bytes), dtype=np.uint8)
    blocks = data.reshape(-1, format.block_bytes)
    if format.name == "mxfp4":  # one E8M0 exponent: 2 ** -3 to 2 ** -1
        blocks[:, 0] = generator.integers(124, 127, blocks.shape[0])
    elif format.name == "nvfp4":  # four E4M3 scales: 0.09 to 0.69
        blocks[:, :4] = generator.integers(0x1C, 0x34, (blocks.shape[0], 4))
    else:
        scales = _random_halves(generator, (blocks.shape[0], 2), 1.0)
        _set_scales(format.name, blocks, scales)
        # Decoded values are proportional to the scales taken together.
        size = _root_mean_square(format.decode(data))
        if size > 0:
            _set_scales(format.name, blocks, (scales / np.float32(size)).astype("<f2"))
    return Weight(format, shape, data, name)


def _random_halves(
    generator: np.random.Generator, shape: tuple[int, int], size: float
) -> np.ndarray:
    magnitude = generator.uniform(0.5 * size, 1.5 * size, shape)
    return np.copysign(magnitude, generator.standard_normal(shape)).astype("<f2")


def _set_scales(format_name: str, blocks: Bytes, scales: np.ndarray) -> None:
    """scales: float16 [blocks, 2], the second used where a format has minima."""
    if format_name == "iq1_m":  # the scale's four nibbles sit atop four 16-bit words
        words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
        bits = scales[:, :1].copy().view("<u2")
        nibbles = bits >> np.array([0, 4, 8, 12], "<u2") & 15
        blocks[:, 48:56] = ((words & 0x0FFF) | nibbles << 12).astype("<u2").view(np.uint8)
        return
    for column, offset in enumerate(_HALF_FIELDS[format_name]):
        field = np.ascontiguousarray(scales[:, column : column + 1])
        blocks[:, offset : offset + 2] = field.view(np.uint8)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
