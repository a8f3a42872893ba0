"""mxfp4 as safetensors hold it: 4-bit codes in one tensor, their scales in another.

Sixteen bytes of codes are a block of 32 values: byte i holds value 2i in its low nibble and 2i + 1
in its high one, and one byte of E8M0 is the scale (OCP Microscaling Formats (MX) v1.0, sections
5.3.3 and 5.4). gpt-oss's files have them as `..._blocks`, [rows, blocks, 16], and `..._scales`;
DeepSeek-V4's as `weight`, [rows, columns / 2], and `scale`.
"""

from __future__ import annotations

import numpy as np

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes

BLOCK_VALUES = 32
CODE_BYTES = 16
_NOT_A_NUMBER = 255


def join_mxfp4(codes: Bytes, scales: Bytes, name: str) -> Bytes:
    """Codes and scales as rows of the format "mxfp4" (formats/float4.py), the same values exactly.

    Args:
        codes: uint8 [rows, blocks, 16].
        scales: uint8 [rows, blocks].
        name: the tensor's, for messages.

    Returns:
        uint8 [rows, blocks * 17].

    Raises:
        FormatError: a scale is not a number.
    """
    if (scales == _NOT_A_NUMBER).any():
        raise FormatError(
            name,
            "a scale of its blocks is NaN (the E8M0 byte 255)",
            "Fetch the model again: no published file has such a scale",
        )
    rows, blocks, _ = codes.shape
    values = np.empty((rows, blocks, BLOCK_VALUES), np.uint8)
    values[:, :, 0::2] = codes & 15
    values[:, :, 1::2] = codes >> 4
    joined = np.empty((rows, blocks, 1 + CODE_BYTES), np.uint8)
    joined[:, :, 0] = scales
    joined[:, :, 1:] = values[:, :, :CODE_BYTES] | values[:, :, CODE_BYTES:] << 4
    return joined.reshape(rows, blocks * (1 + CODE_BYTES))
