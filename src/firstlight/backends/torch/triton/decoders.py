# mypy: disable-error-code=no-untyped-def
# ruff: noqa: RET505 (of what follows a return in a branch of constants, Triton knows nothing)
"""Codes, scales and minima of weights, read from where they lie into registers.

Layouts are those of formats/. Every function takes pointers to a weight's bytes and `first`, the
number of a row's first block (or value, where blocks are single values), and gives float32 of the
shape to which its arguments broadcast. Small whole numbers become float32 by putting them into the
lowest bits of 2^23, which every chip does at full speed; conversions are slower on many.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _whole(number, less: tl.constexpr):
    """A whole number from 0 to 2^22, less another, as float32."""
    return (number | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + less)


@triton.jit
def _byte(weight, place):
    return tl.load(weight + place).to(tl.int32)


@triton.jit
def _half(weight, place):
    """The float16 at a byte."""
    return tl.load((weight + place).to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def first_column(chunk, VALUES: tl.constexpr, PARTS: tl.constexpr, DISTANCE: tl.constexpr):
    """Of a chunk's first part."""
    if DISTANCE > VALUES:
        RUN: tl.constexpr = DISTANCE // VALUES
        return chunk // RUN * (RUN * VALUES * PARTS) + chunk % RUN * VALUES
    else:
        return chunk * (VALUES * PARTS)


@triton.jit
def e4m3(code):
    """float32 of 8-bit floating-point codes without infinities, int32. No subnormal float32 is
    made on the way, since a chip may drop those."""
    most = code & 0x7F
    normal = ((most << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    small = ((most << 20) | 0x3C800000).to(tl.float32, bitcast=True) - 0.015625
    value = tl.where(most < 8, small, normal)
    value = tl.where(most == 0x7F, float("nan"), value)
    return tl.where(code >= 0x80, -value, value)


@triton.jit
def _e2m1_doubled(code):
    """float32 of twice the value of 4-bit floating-point codes, int32."""
    most = code & 7
    normal = ((most << 22) + 0x3F800000).to(tl.float32, bitcast=True)
    value = tl.where(most < 2, tl.where(most == 1, 1.0, 0.0), normal)
    return tl.where(code >= 8, -value, value)


@triton.jit
def codes_of(
    weight, first, chunk, place, columns,
    PART: tl.constexpr, FORMAT: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """What is multiplied by a scale, of the values `place` (0 to VALUES) of a part of a chunk.

    All formats but the first two have whole blocks, so that only those need to know where a row
    ends.
    """
    if FORMAT == "bf16":
        column = chunk * VALUES + place
        return tl.load(weight + (first + column), mask=column < columns, other=0.0).to(tl.float32)
    elif FORMAT == "f8_e4m3":
        column = chunk * VALUES + place
        return e4m3(tl.load(weight + (first + column), mask=column < columns, other=0).to(tl.int32))
    elif FORMAT == "q8_0":
        return _whole(_byte(weight, (first + chunk) * 34 + 2 + place) ^ 0x80, 128)
    elif FORMAT == "q4_0":
        return _whole(_byte(weight, (first + chunk) * 18 + 2 + place) >> (4 * PART) & 15, 8)
    elif FORMAT == "q4_1":
        return _whole(_byte(weight, (first + chunk) * 20 + 4 + place) >> (4 * PART) & 15, 0)
    elif FORMAT == "q5_0":
        start = (first + chunk) * 22
        low = _byte(weight, start + 6 + place) >> (4 * PART) & 15
        fifth = _byte(weight, start + (2 + 2 * PART) + place // 8) >> (place % 8) & 1
        return _whole(low | fifth << 4, 16)
    elif FORMAT == "q5_1":
        start = (first + chunk) * 24
        low = _byte(weight, start + 8 + place) >> (4 * PART) & 15
        fifth = _byte(weight, start + (4 + 2 * PART) + place // 8) >> (place % 8) & 1
        return _whole(low | fifth << 4, 0)
    elif FORMAT == "mxfp4":
        code = _byte(weight, (first + chunk) * 17 + 1 + place) >> (4 * PART) & 15
        return _e2m1_doubled(code)
    elif FORMAT == "nvfp4":
        start = (first + chunk // 4) * 36 + 4 + chunk % 4 * 8
        return _e2m1_doubled(_byte(weight, start + place % 8) >> (place // 8 * 4) & 15)
    elif FORMAT == "q4_k":
        start = (first + chunk // 4) * 144 + 16 + chunk % 4 * 32
        return _whole(_byte(weight, start + place) >> (4 * PART) & 15, 0)
    elif FORMAT == "q5_k":
        start = (first + chunk // 4) * 176
        low = _byte(weight, start + 48 + chunk % 4 * 32 + place) >> (4 * PART) & 15
        fifth = _byte(weight, start + 16 + place) >> (chunk % 4 * 2 + PART) & 1
        return _whole(low | fifth << 4, 0)
    else:
        tl.static_assert(FORMAT == "q6_k")
        start = (first + chunk // 8) * 210
        half, within = chunk // 4 % 2, chunk % 4
        low = _byte(weight, start + half * 64 + within * 16 + place) >> (4 * PART) & 15
        top = _byte(weight, start + 128 + half * 32 + within % 2 * 16 + place)
        top = top >> (within // 2 * 2 + 4 * PART) & 3
        return _whole(low | top << 4, 32)


@triton.jit
def _six_bits(weight, start, group, MINIMUM: tl.constexpr):
    """A scale or minimum of the eight in 12 bytes, as k_quants.py packs them; `start` is theirs."""
    own = _byte(weight, start + 4 * MINIMUM + group % 4)
    nibbles = _byte(weight, start + 8 + group % 4) >> (4 * MINIMUM) & 15
    return _whole(tl.where(group < 4, own & 63, nibbles | (own >> 2 & 0x30)), 0)


@triton.jit
def scales_of(
    weight, first, chunk, row, scales, scales_across,
    PART: tl.constexpr, FORMAT: tl.constexpr, VALUES: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The scale of a part of a chunk.

    `row` counts from the first row that `scales`, float32 [row blocks, scales_across] of blocks of
    SCALE_ROWS by SCALE_COLUMNS values, are for; only weights of single values have those.
    """
    if FORMAT == "f8_e4m3":
        block = row // SCALE_ROWS * scales_across + chunk * VALUES // SCALE_COLUMNS
        return tl.load(scales + block)
    elif FORMAT == "mxfp4":
        power = _byte(weight, (first + chunk) * 17)
        least = tl.where(power == 1, 0x00400000, 0x00200000)
        return tl.where(power > 1, (power - 1) << 23, least).to(tl.float32, bitcast=True)
    elif FORMAT == "nvfp4":
        stored = _byte(weight, (first + chunk // 4) * 36 + chunk % 4)
        code = stored & 0x7F
        normal = ((code << 20) + 0x3B800000).to(tl.float32, bitcast=True)
        small = ((code << 20) | 0x3C000000).to(tl.float32, bitcast=True) - 0.0078125
        value = tl.where(code < 8, small, normal)
        return tl.where(stored == 0x7F, 0.0, value)
    elif FORMAT == "q8_0":
        return _half(weight, (first + chunk) * 34)
    elif FORMAT == "q4_0":
        return _half(weight, (first + chunk) * 18)
    elif FORMAT == "q4_1":
        return _half(weight, (first + chunk) * 20)
    elif FORMAT == "q5_0":
        return _half(weight, (first + chunk) * 22)
    elif FORMAT == "q5_1":
        return _half(weight, (first + chunk) * 24)
    elif FORMAT == "q4_k":
        start = (first + chunk // 4) * 144
        return _half(weight, start) * _six_bits(weight, start + 4, chunk % 4 * 2 + PART, 0)
    elif FORMAT == "q5_k":
        start = (first + chunk // 4) * 176
        return _half(weight, start) * _six_bits(weight, start + 4, chunk % 4 * 2 + PART, 0)
    else:
        tl.static_assert(FORMAT == "q6_k")
        start = (first + chunk // 8) * 210
        group = chunk // 4 % 2 * 8 + 4 * PART + chunk % 4
        scale = _whole(_byte(weight, start + 192 + group) ^ 0x80, 128)
        return _half(weight, start + 208) * scale


@triton.jit
def minima_of(weight, first, chunk, PART: tl.constexpr, FORMAT: tl.constexpr):
    """What is added to the values of a part of a chunk."""
    if FORMAT == "q4_1":
        return _half(weight, (first + chunk) * 20 + 2)
    elif FORMAT == "q5_1":
        return _half(weight, (first + chunk) * 24 + 2)
    elif FORMAT == "q4_k":
        start = (first + chunk // 4) * 144
        return -(_half(weight, start + 2) * _six_bits(weight, start + 4, chunk % 4 * 2 + PART, 1))
    else:
        tl.static_assert(FORMAT == "q5_k")
        start = (first + chunk // 4) * 176
        return -(_half(weight, start + 2) * _six_bits(weight, start + 4, chunk % 4 * 2 + PART, 1))


@triton.jit
def values_of(
    weight, first, chunk, place, columns, row, scales,
    scales_across, PART: tl.constexpr, FORMAT: tl.constexpr, VALUES: tl.constexpr,
    SCALED: tl.constexpr, MINIMUM: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Values of a part of some chunks, in the order of float32 operations of formats/."""
    value = codes_of(weight, first, chunk, place, columns, PART, FORMAT, VALUES)
    if SCALED:
        value *= scales_of(
            weight, first, chunk, row, scales, scales_across,
            PART, FORMAT, VALUES, SCALE_ROWS, SCALE_COLUMNS,
        )  # fmt: skip
    if MINIMUM:
        value += minima_of(weight, first, chunk, PART, FORMAT)
    return value
