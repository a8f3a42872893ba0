"""Whole-number codes with scales of groups, written without loss as GGUF's oldest block types.

Those have blocks of 32 with a float16 scale, and the fastest kernels. (code - zero) * scale is

    q4_0    (q - 8) * d      where every zero is 8
    q4_1    q * d + m        where every -zero * scale is a float16
    q5_0    (q - 16) * d     otherwise, with q = code - zero + 16
    q8_0    q * d            codes of 8 bits with every zero 128

if groups are whole blocks and every scale is a float16. A product of a float16 with such a code,
and its sum with a float16 minimum, take fewer bits than float32 has, so both sides are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Bytes, Floats, Format
from firstlight.formats.legacy import Q4_0, Q4_1, Q5_0, Q8_0

BLOCK = 32
Zeros = NDArray[np.int16]


def lossless_format(bits: int, group: int, scales: Floats, zeros: Zeros | int) -> Format | None:
    """The format that holds such codes exactly; None where none does.

    Args:
        bits: of a code.
        group: columns of a group.
        scales: float32, all of the matrix.
        zeros: whole numbers in the shape of the scales, or one for all.
    """
    if group % BLOCK or not _is_half(scales):
        return None
    middle = 1 << bits - 1
    if bits == 8:
        return Q8_0 if np.all(np.equal(zeros, middle)) else None
    if bits != 4:
        return None
    if np.all(np.equal(zeros, middle)):
        return Q4_0
    if _is_half(_minimums(scales, zeros)):
        return Q4_1
    return Q5_0 if np.all(np.less_equal(zeros, 16)) else None


def join_blocks(
    codes: Bytes, scales: Floats, zeros: Zeros | int, group: int, format: Format
) -> Bytes:
    """Rows of codes as blocks of a format that `lossless_format` chose.

    Args:
        codes: uint8 [rows, columns].
        scales: float32 [rows, groups].
        zeros: int16 [rows, groups], or one for all.
        group: columns of a group; the last may be cut short.

    Returns:
        uint8 [rows, format.row_bytes(columns)].
    """
    rows, columns = codes.shape
    blocks = columns // BLOCK
    group_of = np.arange(blocks) * BLOCK // group
    wide = scales[:, group_of]
    if not isinstance(zeros, int):
        zeros = zeros[:, group_of]
    parts = codes.reshape(rows, blocks, BLOCK)
    out = np.empty((rows, blocks, format.block_bytes), np.uint8)
    out[:, :, :2] = _half_bytes(wide)
    if format is Q4_0:
        out[:, :, 2:] = _nibbles(parts)
    elif format is Q4_1:
        out[:, :, 2:4] = _half_bytes(_minimums(wide, zeros))
        out[:, :, 4:] = _nibbles(parts)
    elif format is Q5_0:
        zero = zeros if isinstance(zeros, int) else zeros[:, :, None]
        five: Bytes = (parts.astype(np.int16) - zero + 16).astype(np.uint8)
        out[:, :, 2:6] = np.packbits(five >> 4, axis=2, bitorder="little")
        out[:, :, 6:] = _nibbles(five & np.uint8(15))
    else:
        out[:, :, 2:] = parts ^ np.uint8(128)
    return out.reshape(rows, blocks * format.block_bytes)


def _minimums(scales: Floats, zeros: Zeros | int) -> Floats:
    return -np.asarray(zeros, np.float32) * scales


def _is_half(values: Floats) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _half_bytes(values: Floats) -> Bytes:
    return values.astype("<f2")[:, :, None].view(np.uint8)


def _nibbles(parts: Bytes) -> Bytes:
    """Value j of a block in the low nibble of byte j, value j + 16 in its high one."""
    return parts[:, :, :16] | parts[:, :, 16:] << np.uint8(4)
