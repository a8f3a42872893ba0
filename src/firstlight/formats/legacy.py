"""GGUF's oldest block types: 32 values with one float16 scale, and a minimum in the _1 types.

    value = scale * (q - middle)    q4_0, q5_0, q8_0
    value = scale * q + minimum     q4_1, q5_1

In a block of 4- or 5-bit codes byte j holds value j in its low and value j + 16 in its high
nibble; the fifth bits are a 32-bit word, bit j for value j. Layout: ggml's block_q4_0 to
block_q8_0 (ggml-common.h). Decoding keeps the order of float32 operations of ggml's reference
functions (ggml-quants.c), so the results are equal bit for bit; encoding is in legacy_encoding.py.

`q8_0` and `q4_1` are also what firstlight converts to when a user asks for int8 and int4.
"""

from __future__ import annotations

import numpy as np

from firstlight.formats import legacy_encoding as encoding
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


Q4_0 = block_format("q4_0", 32, 18, _decode_q4_0, encoding.encode_q4_0, encoding.fit_q4_0)
Q4_1 = block_format("q4_1", 32, 20, _decode_q4_1, encoding.encode_q4_1, encoding.fit_q4_1)
Q5_0 = block_format("q5_0", 32, 22, _decode_q5_0, encoding.encode_q5_0, encoding.fit_q5_0)
Q5_1 = block_format("q5_1", 32, 24, _decode_q5_1, encoding.encode_q5_1, encoding.fit_q5_1)
Q8_0 = block_format("q8_0", 32, 34, _decode_q8_0, encoding.encode_q8_0, encoding.fit_q8_0)

FORMATS = (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0)
