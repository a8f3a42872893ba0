"""GGUF's oldest block types: 32 values with one float16 scale, and a minimum in the _1 types.

    value = scale * (q - middle)    q4_0, q5_0, q8_0
    value = scale * q + minimum     q4_1, q5_1

In a block of 4- or 5-bit codes byte j holds value j in its low and value j + 16 in its high
nibble; the fifth bits are a 32-bit word, bit j for value j. Layout: ggml's block_q4_0 to
block_q8_0 (ggml-common.h). Decoding and encoding keep the order of float32 operations of ggml's
reference functions (ggml-quants.c), so the results are equal bit for bit.

`q8_0` and `q4_1` are also what firstlight converts to when a user asks for int8 and int4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats
from firstlight.formats.blocks import block_format, half


def _unpack_nibbles(codes: Bytes, out: Floats) -> None:
    """codes uint8 [count, 16] into out [count, 32]."""
    out[:, :16] = codes & 15
    out[:, 16:] = codes >> 4


def _unpack_five_bits(high: Bytes, codes: Bytes, out: Floats) -> None:
    """high uint8 [count, 4] and codes uint8 [count, 16] into out [count, 32]."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    fifth <<= 4
    out[:, :16] = (codes & 15) | fifth[:, :16]
    out[:, 16:] = (codes >> 4) | fifth[:, 16:]


def _decode_q4_0(blocks: Bytes, out: Floats) -> None:
    _unpack_nibbles(blocks[:, 2:], out)
    out -= 8
    out *= half(blocks, 0)


def _decode_q4_1(blocks: Bytes, out: Floats) -> None:
    _unpack_nibbles(blocks[:, 4:], out)
    out *= half(blocks, 0)
    out += half(blocks, 2)


def _decode_q5_0(blocks: Bytes, out: Floats) -> None:
    _unpack_five_bits(blocks[:, 2:6], blocks[:, 6:], out)
    out -= 16
    out *= half(blocks, 0)


def _decode_q5_1(blocks: Bytes, out: Floats) -> None:
    _unpack_five_bits(blocks[:, 4:8], blocks[:, 8:], out)
    out *= half(blocks, 0)
    out += half(blocks, 2)


def _decode_q8_0(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= half(blocks, 0)


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, or 0 where that is infinite: there the float16 scale is 0 and codes are free."""
    inverse = np.float32(1) / scale
    inverse[np.isinf(inverse)] = 0
    return inverse


def _store_half(values: Floats, blocks: Bytes, offset: int, name: str) -> None:
    """values [count, 1] as float16 at byte `offset` of every block."""
    stored = values.astype("<f2")
    if not np.isfinite(stored).all():
        raise FormatError(
            f"values to store as {name}",
            "some are not finite, or too large for the format's float16 scale",
            "Keep this tensor in its own format, or choose bf16",
        )
    blocks[:, offset : offset + 2] = stored.view(np.uint8)


def _codes(scaled: Floats, highest: int) -> Bytes:
    """Non-negative `scaled` cut down to whole numbers, as uint8 of at most `highest`."""
    return np.minimum(scaled, np.float32(highest)).astype(np.uint8)


def _pack_nibbles(codes: Bytes) -> Bytes:
    """uint8 [count, 32], low four bits used, to [count, 16]."""
    low, high = codes[:, :16], codes[:, 16:]
    return low & np.uint8(15) | high << np.uint8(4)


def _signed_codes(values: Floats, middle: int, blocks: Bytes, name: str) -> Bytes:
    """Stores the scale and returns the codes, for types without a minimum.

    Codes reach one step further below the middle than above it: the value of largest magnitude
    gets code 0, and gives the scale its sign.
    """
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-middle)
    _store_half(scale, blocks, 0, name)
    return _codes(values * _reciprocal(scale) + np.float32(middle + 0.5), 2 * middle - 1)


def _unsigned_codes(values: Floats, highest: int, blocks: Bytes, name: str) -> Bytes:
    """Stores scale and minimum and returns the codes, for types with a minimum."""
    minimum = values.min(axis=1, keepdims=True)
    scale = (values.max(axis=1, keepdims=True) - minimum) / np.float32(highest)
    _store_half(scale, blocks, 0, name)
    _store_half(minimum, blocks, 2, name)
    return _codes((values - minimum) * _reciprocal(scale) + np.float32(0.5), highest)


def _store_five_bits(codes: Bytes, blocks: Bytes, offset: int) -> None:
    blocks[:, offset : offset + 4] = np.packbits(codes >> 4, axis=1, bitorder="little")
    blocks[:, offset + 4 :] = _pack_nibbles(codes)


def _encode_q4_0(values: Floats, blocks: Bytes) -> None:
    blocks[:, 2:] = _pack_nibbles(_signed_codes(values, 8, blocks, "q4_0"))


def _encode_q4_1(values: Floats, blocks: Bytes) -> None:
    blocks[:, 4:] = _pack_nibbles(_unsigned_codes(values, 15, blocks, "q4_1"))


def _encode_q5_0(values: Floats, blocks: Bytes) -> None:
    _store_five_bits(_signed_codes(values, 16, blocks, "q5_0"), blocks, 2)


def _encode_q5_1(values: Floats, blocks: Bytes) -> None:
    _store_five_bits(_unsigned_codes(values, 31, blocks, "q5_1"), blocks, 4)


def _encode_q8_0(values: Floats, blocks: Bytes) -> None:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    _store_half(scale, blocks, 0, "q8_0")
    blocks[:, 2:] = _round_half_away(values * _reciprocal(scale)).astype(np.int8).view(np.uint8)


def _round_half_away(values: Floats) -> Floats:
    """C's roundf. NumPy's rint would send ties to even."""
    magnitude = np.abs(values)
    floor = np.floor(magnitude)
    floor += magnitude - floor >= 0.5
    rounded: NDArray[np.float32] = np.copysign(floor, values)
    return rounded


Q4_0 = block_format("q4_0", 32, 18, _decode_q4_0, _encode_q4_0)
Q4_1 = block_format("q4_1", 32, 20, _decode_q4_1, _encode_q4_1)
Q5_0 = block_format("q5_0", 32, 22, _decode_q5_0, _encode_q5_0)
Q5_1 = block_format("q5_1", 32, 24, _decode_q5_1, _encode_q5_1)
Q8_0 = block_format("q8_0", 32, 34, _decode_q8_0, _encode_q8_0)

FORMATS = (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0)
