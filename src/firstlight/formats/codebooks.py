"""GGUF's i-quants of one to three bits: a code names a row of four or eight values in a code book.

Super-blocks of 256 values with one float16 scale `d` and small integer scales of sub-blocks:

    value = (d * (1/2 + scale) / 4) * sign * row value     iq2_xxs, iq2_xs, iq2_s
    value = (d * (1/2 + scale) / 2) * sign * row value     iq3_xxs
    value = (d * (1 + 2 * scale)) * sign * row value       iq3_s
    value = (d * (1 + 2 * scale)) * (row value +- 1/8)     iq1_s, iq1_m

The _xxs and _xs types spend seven bits on the signs of eight values: the eighth sign makes the
number of minus signs even. Layout: ggml's block_iq1_s to block_iq3_s (ggml-common.h). Factors are
rounded to float32 in the order of ggml's reference functions (ggml-quants.c), so results are equal
bit for bit. The code books are read when the first such tensor is decoded.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format, half


def _book(name: str) -> Floats:
    from firstlight.formats.codebook_data import codebook

    return codebook(name)


@functools.cache
def _signs() -> Floats:
    """float32 [256, 8]: for each byte its bits, lowest first, as 1 where clear and -1 where set."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits, np.float32(-1), np.float32(1))


@functools.cache
def _even_signs() -> Floats:
    """float32 [128, 8]: the same for seven bits and an eighth that makes the count of -1 even."""
    signs = _signs()[:128].copy()
    signs[:, 7] = signs[:, :7].prod(axis=1)
    return signs


@functools.cache
def _shifted_book() -> Floats:
    """The iq1 code book plus 1/8, then the same minus 1/8: float32 [2 * 2048, 8]."""
    book = _book("iq1")
    return np.concatenate([book + np.float32(0.125), book - np.float32(0.125)])


def _nibbles(packed: Bytes) -> Bytes:
    """uint8 [count, n] to [count, 2 n], the low nibble of each byte first."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(packed.shape[0], -1)


def _bits_at(words: NDArray[Any], shifts: tuple[int, ...], mask: int) -> NDArray[np.int64]:
    """Each word's fields side by side: [count, n] to [count, n * len(shifts)]."""
    fields: NDArray[Any] = words[:, :, None] >> np.array(shifts, words.dtype) & words.dtype.type(
        mask
    )
    return fields.reshape(words.shape[0], -1).astype(np.int64)


def _fill(rows: Floats, signs: Floats | None, scales: Floats, out: Floats) -> None:
    """out [count, 256] = rows * signs * scales; scales [count, groups] over equal runs of values.

    A sign only flips a bit, so that its place in the product does not matter.
    """
    out[:] = rows.reshape(out.shape)
    if signs is not None:
        out *= signs.reshape(out.shape)
    runs = out.reshape(*scales.shape, -1)
    runs *= scales[:, :, None]


def _half_step_scales(d: Floats, scales: NDArray[Any], factor: float) -> Floats:
    return d * (scales.astype(np.float32) + np.float32(0.5)) * np.float32(factor)


def _odd_scales(d: Floats, scales: NDArray[Any]) -> Floats:
    return d * (2 * scales + 1).astype(np.float32)


def _decode_iq2_xxs(blocks: Bytes, out: Floats) -> None:
    """d, then for each 32 values four codes and a word: four times seven signs, a 4-bit scale."""
    groups = blocks[:, 2:].reshape(-1, 8, 8)
    words = groups[:, :, 4:].view("<u4")[:, :, 0]
    signs = _even_signs()[_bits_at(words, (0, 7, 14, 21), 127)]
    scales = _half_step_scales(half(blocks, 0), words >> 28, 0.25)
    _fill(_book("iq2_xxs")[groups[:, :, :4]], signs, scales, out)


def _decode_iq2_xs(blocks: Bytes, out: Floats) -> None:
    """d, 32 words of a 9-bit code and seven signs, 4-bit scales [8] for each 16 values."""
    words = blocks[:, 2:66].view("<u2")
    scales = _half_step_scales(half(blocks, 0), _nibbles(blocks[:, 66:]), 0.25)
    _fill(_book("iq2_xs")[words & 511], _even_signs()[words >> 9], scales, out)


def _decode_iq2_s(blocks: Bytes, out: Floats) -> None:
    """d, low bits of codes [32], signs [32], two high bits of codes [8], 4-bit scales [8]."""
    codes = blocks[:, 2:34] | _bits_at(blocks[:, 66:74], (0, 2, 4, 6), 3) << 8
    scales = _half_step_scales(half(blocks, 0), _nibbles(blocks[:, 74:]), 0.25)
    _fill(_book("iq2_s")[codes], _signs()[blocks[:, 34:66]], scales, out)


def _decode_iq3_xxs(blocks: Bytes, out: Floats) -> None:
    """d, codes [64] of four values, and for each 32 values a word as in iq2_xxs."""
    words = blocks[:, 66:].view("<u4")
    signs = _even_signs()[_bits_at(words, (0, 7, 14, 21), 127)]
    scales = _half_step_scales(half(blocks, 0), words >> 28, 0.5)
    _fill(_book("iq3_xxs")[blocks[:, 2:66]], signs, scales, out)


def _decode_iq3_s(blocks: Bytes, out: Floats) -> None:
    """d, low bits of codes [64] of four values, high bits [8], signs [32], 4-bit scales [4]."""
    codes = blocks[:, 2:66] | _bits_at(blocks[:, 66:74], tuple(range(8)), 1) << 8
    scales = _odd_scales(half(blocks, 0), _nibbles(blocks[:, 106:]))
    _fill(_book("iq3_s")[codes], _signs()[blocks[:, 74:106]], scales, out)


def _decode_iq1_s(blocks: Bytes, out: Floats) -> None:
    """d, low bits of codes [32], and for each 32 values a word.

    The word: three high bits of each of four codes, a 3-bit scale, and whether 1/8 is taken away.
    """
    words = blocks[:, 34:].view("<u2")
    high = _bits_at(words, (0, 3, 6, 9), 7) << 8
    minus = np.repeat((words >> 15).astype(np.int64) << 11, 4, axis=1)
    scales = _odd_scales(half(blocks, 0), words >> 12 & 7)
    _fill(_shifted_book()[blocks[:, 2:34] | high | minus], None, scales, out)


def _decode_iq1_m(blocks: Bytes, out: Floats) -> None:
    """Low bits of codes [32], a nibble for each code [16], scales [8].

    The nibble: three high bits, and whether 1/8 is taken away: together bits 8 to 11 of the place
    in the shifted code book. Scales: four words of four 3-bit scales of 16 values each, above them
    one nibble of `d`, the first word's the lowest.
    """
    words = blocks[:, 48:].view("<u2")
    tops = words >> 12
    d_bits = tops[:, :1] | tops[:, 1:2] << 4 | tops[:, 2:3] << 8 | tops[:, 3:] << 12
    d = d_bits.view(np.float16).astype(np.float32)
    scales = _odd_scales(d, _bits_at(words, (0, 3, 6, 9), 7))
    codes = blocks[:, :32] | _nibbles(blocks[:, 32:48]).astype(np.int64) << 8
    _fill(_shifted_book()[codes], None, scales, out)


IQ3_S = block_format("iq3_s", 256, 110, _decode_iq3_s)
IQ3_XXS = block_format("iq3_xxs", 256, 98, _decode_iq3_xxs)
IQ2_S = block_format("iq2_s", 256, 82, _decode_iq2_s)
IQ2_XS = block_format("iq2_xs", 256, 74, _decode_iq2_xs)
IQ2_XXS = block_format("iq2_xxs", 256, 66, _decode_iq2_xxs)
IQ1_M = block_format("iq1_m", 256, 56, _decode_iq1_m)
IQ1_S = block_format("iq1_s", 256, 50, _decode_iq1_s)

FORMATS = (IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S)
