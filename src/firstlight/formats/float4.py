"""Blocks of 4-bit floating-point values (E2M1) with a shared 8-bit scale.

mxfp4: 32 values, one E8M0 scale (a power of two). OCP Microscaling Formats (MX) v1.0, section 5.4.
nvfp4: 64 values, an unsigned E4M3 scale for each 16.

Byte order as in ggml's block_mxfp4 and block_nvfp4 (ggml-common.h): a run of n values has n / 2
bytes, low nibbles the first half and high nibbles the second. Like ggml, and unlike the MX
specification, an E8M0 scale of 255 is a finite power of two and not NaN.
"""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format

# Code points of E2M1 (sign, two bits of exponent, one of mantissa), doubled. ggml stores them so,
# as whole numbers, halves the scale instead, and has 0 for -0.
_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)

# 2 ** (byte - 127), halved.
_HALF_E8M0 = np.ldexp(np.float32(1), np.arange(256) - 128)


def _half_ue4m3() -> Floats:
    """Half of unsigned E4M3, bias 7, for each byte, [256]: the top bit is ignored and NaN is 0.

    ggml looks for NaN (0x7f) before it drops the top bit, so that 0xff counts as 480.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    scales = np.where(exponent == 0, mantissa * 2.0**-9, normal) / 2
    scales[0x7F] = 0
    return scales.astype(np.float32)


_HALF_UE4M3 = _half_ue4m3()


def _decode_mxfp4(blocks: Bytes, out: Floats) -> None:
    codes = blocks[:, 1:]
    out[:, :16] = _DOUBLED[codes & 15]
    out[:, 16:] = _DOUBLED[codes >> 4]
    out *= _HALF_E8M0[blocks[:, :1]]


def _decode_nvfp4(blocks: Bytes, out: Floats) -> None:
    codes = blocks[:, 4:].reshape(-1, 4, 8)
    runs = out.reshape(-1, 4, 16)
    runs[:, :, :8] = _DOUBLED[codes & 15]
    runs[:, :, 8:] = _DOUBLED[codes >> 4]
    runs *= _HALF_UE4M3[blocks[:, :4, None]]


MXFP4 = block_format("mxfp4", 32, 17, _decode_mxfp4)
NVFP4 = block_format("nvfp4", 64, 36, _decode_nvfp4)

FORMATS = (NVFP4, MXFP4)
