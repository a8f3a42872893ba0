"""GGUF's ternary types: 256 values of -1, 0 or 1 times one float16 scale.

tq1_0 packs five values into a byte, tq2_0 four. Layout: ggml's block_tq1_0 and block_tq2_0
(ggml-common.h).
"""

from __future__ import annotations

import functools

import numpy as np

from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format, half


@functools.cache
def _ternary_digits() -> Floats:
    """The five values in each byte: float32 [5, 256].

    The byte is a fraction of 256 whose base-3 digits are the values plus one; digit k is the whole
    part of 3 * fraction(byte / 256 * 3**k).
    """
    powers = 3 ** np.arange(5)[:, None]
    digits = (np.arange(256) * powers % 256) * 3 >> 8
    return (digits - 1).astype(np.float32)


def _decode_tq1_0(blocks: Bytes, out: Floats) -> None:
    """Five digits each of 32 bytes, five each of 16, four each of 4, d."""
    digits = _ternary_digits()
    value = byte = 0
    for width, count in ((32, 5), (16, 5), (4, 4)):
        for digit in range(count):
            out[:, value : value + width] = digits[digit][blocks[:, byte : byte + width]]
            value += width
        byte += width
    out *= half(blocks, 52)


def _decode_tq2_0(blocks: Bytes, out: Floats) -> None:
    """Codes [64] of 2 bits, four planes of 32 for each half, d."""
    codes = blocks[:, :64].reshape(-1, 2, 32)
    planes = out.reshape(-1, 2, 4, 32)
    for plane in range(4):
        planes[:, :, plane] = codes >> (2 * plane) & 3
    out -= 1
    out *= half(blocks, 64)


TQ1_0 = block_format("tq1_0", 256, 54, _decode_tq1_0)
TQ2_0 = block_format("tq2_0", 256, 66, _decode_tq2_0)

FORMATS = (TQ2_0, TQ1_0)
