"""Turns the decoding of one batch of blocks into a `Format`.

A block format is written as a function over blocks, [count, block_bytes] to [count, block_values].
Here that function meets arrays of any leading shape, and sees them a piece at a time, so that its
temporary arrays stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats, Format

# Values per piece. A few temporaries of this many values fit in a typical second-level cache.
PIECE_VALUES = 32768

DecodeBlocks = Callable[[Bytes, Floats], None]
EncodeBlocks = Callable[[Floats, Bytes], None]


def block_format(
    name: str,
    block_values: int,
    block_bytes: int,
    decode_blocks: DecodeBlocks,
    encode_blocks: EncodeBlocks | None = None,
    fit_blocks: EncodeBlocks | None = None,
) -> Format:
    """A format from functions that fill their second argument from their first.

    Args:
        name, block_values, block_bytes: see `Format`.
        decode_blocks: (uint8 [count, block_bytes], float32 [count, block_values] to fill).
        encode_blocks: (float32 [count, block_values], uint8 [count, block_bytes] to fill), or
            None where the format is only read.
        fit_blocks: the same with less squared error, or None.
    """
    piece = max(1, PIECE_VALUES // block_values)

    def decode(data: Bytes) -> Floats:
        shape = _blocked_shape(name, data.shape, block_bytes, block_values, "bytes")
        source = np.asarray(data).reshape(-1, block_bytes)
        out = np.empty((source.shape[0], block_values), np.float32)
        # A damaged file may hold scales that are infinite or not a number; they are passed on.
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, source.shape[0], piece):
                decode_blocks(source[start : start + piece], out[start : start + piece])
        return out.reshape(shape)

    def encoder(fill: EncodeBlocks | None) -> Callable[[Floats], Bytes] | None:
        if fill is None:
            return None

        def encode(values: Floats) -> Bytes:
            shape = _blocked_shape(name, values.shape, block_values, block_bytes, "values")
            source = np.asarray(values, np.float32).reshape(-1, block_values)
            out = np.empty((source.shape[0], block_bytes), np.uint8)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
                for start in range(0, source.shape[0], piece):
                    fill(source[start : start + piece], out[start : start + piece])
            return out.reshape(shape)

        return encode

    return Format(
        name, block_values, block_bytes, decode, encoder(encode_blocks), encoder(fit_blocks)
    )


def half(blocks: Bytes, offset: int) -> Floats:
    """The little-endian float16 at byte `offset` of every block, as float32 [count, 1]."""
    return blocks[:, offset : offset + 2].view("<f2").astype(np.float32)


def _blocked_shape(
    name: str, shape: tuple[int, ...], from_size: int, to_size: int, unit: str
) -> tuple[int, ...]:
    """`shape` with its last axis, whole blocks of `from_size`, counted in `to_size` instead."""
    if not shape or shape[-1] % from_size:
        raise FormatError(
            f"{name} data of shape {list(shape)}",
            f"the last axis is not whole blocks of {from_size} {unit}",
            "Pass whole rows of the tensor",
        )
    return (*shape[:-1], shape[-1] // from_size * to_size)
