"""Formats of bare codes, whose scales lie in a tensor of their own (`GroupScales`).

They are not asked for by name: without scales a code is no weight.

    u4      0 to 15, two in a byte, the first in the low nibble
    u8      0 to 255, one in a byte
    e2m1    4-bit floating point, two in a byte, the first in the low nibble

The first two are what compressed-tensors' "pack-quantized" files hold, read byte by byte: codes in
words of 32 bits from the lowest bits up, each plus half of its range. E2M1 is that of the OCP
Microscaling Formats (MX) v1.0, section 5.3.3; unlike GGUF's types it has a negative zero.
"""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Floats, Format

_WHOLE = np.arange(256, dtype=np.float32)
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)


def unpack_nibbles(data: Bytes) -> Bytes:
    """uint8 [..., n] as its halves [..., 2 * n], the low one first."""
    out = np.empty((*data.shape, 2), np.uint8)
    np.bitwise_and(data, 15, out=out[..., 0])
    np.right_shift(data, 4, out=out[..., 1])
    return out.reshape(*data.shape[:-1], 2 * data.shape[-1])


def pack_nibbles(codes: Bytes) -> Bytes:
    """The inverse: uint8 [..., 2 * n] below 16 as [..., n]."""
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def _decode_u4(data: Bytes) -> Floats:
    return _WHOLE[unpack_nibbles(data)]


def _decode_u8(data: Bytes) -> Floats:
    return _WHOLE[data]


def _decode_e2m1(data: Bytes) -> Floats:
    return _E2M1[unpack_nibbles(data)]


U4 = Format("u4", 2, 1, _decode_u4)
U8 = Format("u8", 1, 1, _decode_u8)
E2M1 = Format("e2m1", 2, 1, _decode_e2m1)
