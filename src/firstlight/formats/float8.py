"""8-bit floating point: E4M3 values, and E8M0 scales.

Micikevicius et al. 2022 (arXiv:2209.05433), table 1, and OCP Microscaling Formats (MX) v1.0,
sections 5.3.1 and 5.4.1. E4M3 here is the one without infinities, whose codes 0x7f and 0xff are NaN
(safetensors' F8_E4M3, PyTorch's float8_e4m3fn).
"""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Floats, Format


def _e4m3_values() -> Floats:
    """The value of each code, [256]."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.copysign(values, np.where(codes < 128, 1.0, -1.0)).astype(np.float32)


_E4M3 = _e4m3_values()


def _decode_e4m3(data: Bytes) -> Floats:
    return _E4M3[data]


# Halfway between each code and the next, [126]; beyond the largest nothing rounds further.
_POSITIVE = _E4M3[:127].astype(np.float64)
_BETWEEN = (_POSITIVE[:-1] + _POSITIVE[1:]) / 2


def encode_e4m3(values: Floats) -> Bytes:
    """The nearest code of each value, of two equally near the even one; beyond 448 that of 448.

    `values` hold no NaN.
    """
    magnitudes = np.abs(values)
    codes = np.searchsorted(_BETWEEN, magnitudes, side="left").astype(np.uint8)
    # A tie was given to the lower code; the upper one is even where that is odd.
    tied = (codes < 126) & (codes % 2 == 1) & (_BETWEEN[np.minimum(codes, 125)] == magnitudes)
    codes += tied
    return codes | np.signbit(values).astype(np.uint8) << np.uint8(7)


def decode_e8m0(data: Bytes) -> Floats:
    """2 ** (code - 127), exactly; NaN for the code 255."""
    codes = np.asarray(data, np.uint8)
    scales = np.ldexp(1.0, np.minimum(codes, 254).astype(np.int32) - 127).astype(np.float32)
    return np.where(codes == 255, np.float32(np.nan), scales)


F8_E4M3 = Format("f8_e4m3", 1, 1, _decode_e4m3)

FORMATS = (F8_E4M3,)
