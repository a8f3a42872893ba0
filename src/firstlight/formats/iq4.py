"""GGUF's non-linear 4-bit types: a code names one of 16 unevenly spaced whole numbers.

    value = d * level                iq4_nl: 32 values, one float16 scale
    value = (d * scale) * level      iq4_xs: 256 values, and a 6-bit scale for each 32

Layout: ggml's block_iq4_nl and block_iq4_xs (ggml-common.h); levels: its kvalues_iq4nl. Factors are
rounded to float32 in the order of ggml's reference functions, so results are equal bit for bit.
"""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format, half

LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _decode_iq4_nl(blocks: Bytes, out: Floats) -> None:
    codes = blocks[:, 2:]
    out[:, :16] = LEVELS[codes & 15]
    out[:, 16:] = LEVELS[codes >> 4]
    out *= half(blocks, 0)


def _decode_iq4_xs(blocks: Bytes, out: Floats) -> None:
    """d, upper two bits of scales [2], low nibbles of scales [4], codes [128]. Scales are plus 32.

    Scale g has its upper bits in bits 2 g of the 16-bit word, and nibble g of the low ones.
    """
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    top = (blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    scales = (low | top << 4).view(np.int8) - np.int8(32)
    codes = blocks[:, 8:].reshape(-1, 8, 16)
    runs = out.reshape(-1, 8, 32)
    runs[:, :, :16] = LEVELS[codes & 15]
    runs[:, :, 16:] = LEVELS[codes >> 4]
    runs *= (half(blocks, 0) * scales)[:, :, None]


IQ4_NL = block_format("iq4_nl", 32, 18, _decode_iq4_nl)
IQ4_XS = block_format("iq4_xs", 256, 136, _decode_iq4_xs)

FORMATS = (IQ4_NL, IQ4_XS)
