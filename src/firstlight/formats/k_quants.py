"""GGUF's k-quants: super-blocks of 256 values whose sub-blocks have small integer scales.

A float16 scale `d` of the super-block, and `dmin` for minima, multiplies those of the sub-blocks:

    value = (d * scale) * q - (dmin * minimum)    q2_k, q4_k, q5_k
    value = (d * scale) * q                       q3_k, q6_k

Layout: ggml's block_q2_K to block_q6_K (ggml-common.h). Each parenthesis above is rounded to
float32 in ggml's reference functions (ggml-quants.c) and here, so results are equal bit for bit.
"""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format, half


def _scale_groups(scales: Floats, out: Floats, minima: Floats | None = None) -> None:
    """out [count, 256] *= scales, -= minima, each [count, groups] over equal runs of values."""
    count, groups = scales.shape
    runs = out.reshape(count, groups, -1)
    runs *= scales[:, :, None]
    if minima is not None:
        runs -= minima[:, :, None]


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and eight 6-bit minima in 12 bytes: uint8 [count, 8] each.

    Bytes 0-3 and 4-7 hold the first four scales and minima, and in their upper two bits the tops
    of the last four; bytes 8-11 hold the last four's low nibbles, scale low and minimum high.
    """
    first_scales, first_minima, nibbles = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    last_scales = (nibbles & 15) | (first_scales >> 2 & 0x30)
    last_minima = (nibbles >> 4) | (first_minima >> 2 & 0x30)
    scales = np.concatenate([first_scales & 63, last_scales], axis=1)
    minima = np.concatenate([first_minima & 63, last_minima], axis=1)
    return scales, minima


def _decode_q2_k(blocks: Bytes, out: Floats) -> None:
    """scales and minima [16] as nibbles, codes [64] of 2 bits, d, dmin; sub-blocks of 16."""
    pairs = blocks[:, :16]
    codes = blocks[:, 16:80].reshape(-1, 2, 32)
    planes = out.reshape(-1, 2, 4, 32)
    for plane in range(4):
        planes[:, :, plane] = codes >> (2 * plane) & 3
    _scale_groups(half(blocks, 80) * (pairs & 15), out, half(blocks, 82) * (pairs >> 4))


def _decode_q3_k(blocks: Bytes, out: Floats) -> None:
    """high bits [32], codes [64] of 2 bits, 6-bit scales [12], d; sub-blocks of 16.

    A high bit that is clear takes 4 from the code. Scale g is stored plus 32: its low four bits in
    nibble g // 8 of byte g % 8, its upper two in bits 2 * (g // 4) of byte 8 + g % 4.
    """
    high = blocks[:, :32]
    codes = blocks[:, 32:96].reshape(-1, 2, 32)
    planes = out.reshape(-1, 2, 4, 32)
    for plane in range(4):
        planes[:, :, plane] = codes >> (2 * plane) & 3
    bits = out.reshape(-1, 8, 32)
    for plane in range(8):
        bits[:, plane] -= (~high >> plane & 1) << 2

    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = np.concatenate([packed[:, 8:] >> (2 * part) & 3 for part in range(4)], axis=1)
    scales = (low | top << 4).view(np.int8) - np.int8(32)
    _scale_groups(half(blocks, 108) * scales, out)


def _decode_q4_k(blocks: Bytes, out: Floats) -> None:
    """d, dmin, 6-bit scales and minima [12], codes [128] of 4 bits; sub-blocks of 32."""
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    codes = blocks[:, 16:].reshape(-1, 4, 32)
    planes = out.reshape(-1, 4, 2, 32)
    planes[:, :, 0] = codes & 15
    planes[:, :, 1] = codes >> 4
    _scale_groups(half(blocks, 0) * scales, out, half(blocks, 2) * minima)


def _decode_q5_k(blocks: Bytes, out: Floats) -> None:
    """d, dmin, 6-bit scales and minima [12], fifth bits [32], low codes [128]; sub-blocks of 32.

    Bit s of fifth-bit byte i belongs to value i of sub-block s.
    """
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    fifth = blocks[:, 16:48]
    codes = blocks[:, 48:].reshape(-1, 4, 32)
    planes = out.reshape(-1, 4, 2, 32)
    for pair in range(4):
        planes[:, pair, 0] = (codes[:, pair] & 15) | (fifth >> (2 * pair) & 1) << 4
        planes[:, pair, 1] = (codes[:, pair] >> 4) | (fifth >> (2 * pair + 1) & 1) << 4
    _scale_groups(half(blocks, 0) * scales, out, half(blocks, 2) * minima)


def _decode_q6_k(blocks: Bytes, out: Floats) -> None:
    """low nibbles [128], upper two bits [64], int8 scales [16], d; sub-blocks of 16.

    Each half of 128 values is four runs of 32: the low nibbles of 64 bytes, then the high ones.
    """
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    top = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    runs = out.reshape(-1, 2, 2, 2, 32)
    shifts = np.array([[0], [2]], np.uint8)
    runs[:, :, 0] = (low & 15) | (top >> shifts & 3) << 4
    runs[:, :, 1] = (low >> 4) | (top >> (shifts + 4) & 3) << 4
    out -= 32
    _scale_groups(half(blocks, 208) * blocks[:, 192:208].view(np.int8), out)


Q2_K = block_format("q2_k", 256, 84, _decode_q2_k)
Q3_K = block_format("q3_k", 256, 110, _decode_q3_k)
Q4_K = block_format("q4_k", 256, 144, _decode_q4_k)
Q5_K = block_format("q5_k", 256, 176, _decode_q5_k)
Q6_K = block_format("q6_k", 256, 210, _decode_q6_k)

FORMATS = (Q6_K, Q5_K, Q4_K, Q3_K, Q2_K)
