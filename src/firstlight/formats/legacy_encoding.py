"""Encoding of GGUF's oldest block types (legacy.py), by two rules.

`encode_*` take the scale from the extremes of a block, in the order of float32 operations of ggml's
reference functions (ggml-quants.c), so that the results are equal bit for bit. `fit_*` search for
the scale (least_squares.py), and keep ggml's wherever the search finds nothing better.

Here blocks lie as columns: values and codes are [32, count], scales and minimums [count].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats
from firstlight.formats.least_squares import fit_line, fit_slope

# Starts of the searches, chosen one after another, each the one that takes most off the error that
# those before it leave; over normally distributed values, and Gemma's embeddings. All others
# together take off 2% more.
_CUTS_4 = ((0.015, 0.015), (-0.015, 0.03), (0.03, 0.0), (0.0, 0.015), (0.015, -0.03))
_CUTS_5 = ((0.0, 0.0), (0.0075, -0.015), (-0.015, 0.0075), (0.0, 0.015), (0.015, 0.0))
_FACTORS_4 = (0.975, 1.113, 0.912, 1.025)
_FACTORS_5 = (0.988, 1.062, 1.137, 1.012)
_FACTORS_8 = (1.0, 0.995, 0.99, 0.985)

_ZERO = np.float32(0)

# The sum of 32 squares in float32 is wrong by less than this share: what is smaller by more than it
# is smaller.
_SURE = np.float32(1 - 2.0**-16)


def encode_q4_0(values: Floats, blocks: Bytes) -> None:
    codes, scale = _signed(_columns(values), 8, "q4_0")
    _store(blocks, _nibbles(codes, 8), scale)


def encode_q4_1(values: Floats, blocks: Bytes) -> None:
    codes, scale, minimum = _unsigned(_columns(values), 15, "q4_1")
    _store(blocks, _nibbles(codes, 0), scale, minimum)


def encode_q5_0(values: Floats, blocks: Bytes) -> None:
    codes, scale = _signed(_columns(values), 16, "q5_0")
    _store(blocks, _five_bits(codes, 16), scale)


def encode_q5_1(values: Floats, blocks: Bytes) -> None:
    codes, scale, minimum = _unsigned(_columns(values), 31, "q5_1")
    _store(blocks, _five_bits(codes, 0), scale, minimum)


def encode_q8_0(values: Floats, blocks: Bytes) -> None:
    codes, scale = _symmetric(_columns(values))
    _store(blocks, _bytes(codes), scale)


def fit_q4_0(values: Floats, blocks: Bytes) -> None:
    columns = _columns(values)
    codes, scale = _better_signed(columns, _signed(columns, 8, "q4_0"), 8, _FACTORS_4)
    _store(blocks, _nibbles(codes, 8), scale)


def fit_q4_1(values: Floats, blocks: Bytes) -> None:
    columns = _columns(values)
    plain = _unsigned(columns, 15, "q4_1")
    codes, scale, minimum = _better(columns, plain, fit_line(columns, 15, _CUTS_4))
    _store(blocks, _nibbles(codes, 0), scale, minimum)


def fit_q5_0(values: Floats, blocks: Bytes) -> None:
    columns = _columns(values)
    codes, scale = _better_signed(columns, _signed(columns, 16, "q5_0"), 16, _FACTORS_5)
    _store(blocks, _five_bits(codes, 16), scale)


def fit_q5_1(values: Floats, blocks: Bytes) -> None:
    columns = _columns(values)
    plain = _unsigned(columns, 31, "q5_1")
    codes, scale, minimum = _better(columns, plain, fit_line(columns, 31, _CUTS_5))
    _store(blocks, _five_bits(codes, 0), scale, minimum)


def fit_q8_0(values: Floats, blocks: Bytes) -> None:
    """Codes stay within +-127, as ggml's do."""
    columns = _columns(values)
    plain = codes, scale = _symmetric(columns)
    found = fit_slope(columns, -127, 127, [np.float32(f) * scale for f in _FACTORS_8])
    codes, scale, _ = _better(columns, (*plain, _ZERO), (*found, _ZERO))
    _store(blocks, _bytes(codes), scale)


# ggml's rule -----------------------------------------------------------------------------


def _signed(columns: Floats, middle: int, name: str) -> tuple[Floats, Floats]:
    """(codes from -middle to middle - 1, scale), for types without a minimum.

    Codes reach one step further below zero than above it: the value of largest magnitude gets
    -middle, and gives the scale its sign.
    """
    scale = _largest(columns) / np.float32(-middle)
    codes = columns * _reciprocal(scale)
    codes += np.float32(middle + 0.5)
    _cut(codes, 2 * middle - 1)
    codes -= np.float32(middle)
    return codes, _half(scale, name)


def _unsigned(columns: Floats, highest: int, name: str) -> tuple[Floats, Floats, Floats]:
    """(codes from 0 to highest, scale, minimum), for types with a minimum."""
    minimum = columns.min(axis=0)
    scale = (columns.max(axis=0) - minimum) / np.float32(highest)
    codes = columns - minimum
    codes *= _reciprocal(scale)
    codes += np.float32(0.5)
    _cut(codes, highest)
    return codes, _half(scale, name), _half(minimum, name)


def _symmetric(columns: Floats) -> tuple[Floats, Floats]:
    """(codes from -127 to 127, scale) of q8_0."""
    scale = np.abs(columns).max(axis=0) / np.float32(127)
    scaled = columns * _reciprocal(scale)
    # C's roundf, which sends ties away from zero; NumPy's rint sends them to even numbers.
    magnitude = np.abs(scaled)
    codes = np.floor(magnitude)
    codes += magnitude - codes >= 0.5
    return np.copysign(codes, scaled), _half(scale, "q8_0")


def _cut(codes: Floats, highest: int) -> None:
    """Non-negative numbers down to whole ones of at most `highest`, in place."""
    np.minimum(codes, np.float32(highest), out=codes)
    np.floor(codes, out=codes)


# The better of two -----------------------------------------------------------------------


def _better_signed(
    columns: Floats, plain: tuple[Floats, Floats], middle: int, factors: tuple[float, ...]
) -> tuple[Floats, Floats]:
    scale = _largest(columns) / np.float32(-middle)
    steps = [np.float32(factor) * scale for factor in factors]
    found = fit_slope(columns, -middle, middle - 1, steps)
    codes, scale, _ = _better(columns, (*plain, _ZERO), (*found, _ZERO))
    return codes, scale


def _better(
    columns: Floats,
    plain: tuple[Floats, Floats, Floats | np.float32],
    found: tuple[Floats, Floats, Floats | np.float32],
) -> tuple[Floats, Floats, Floats]:
    """Of two encodings (codes, scale, minimum) the one with less squared error, block by block."""
    better = _error(columns, *found) < _error(columns, *plain) * _SURE
    codes, scale, minimum = (
        np.where(better, ours, theirs) for ours, theirs in zip(found, plain, strict=True)
    )
    return codes, scale, minimum


def _error(columns: Floats, codes: Floats, scale: Floats, minimum: Floats | np.float32) -> Floats:
    """Squared error of every block, its values computed as the decoder does."""
    decoded = codes * scale
    decoded += minimum
    decoded -= columns
    error: Floats = np.einsum("ij,ij->j", decoded, decoded)
    return error


# Storing ---------------------------------------------------------------------------------


def _columns(values: Floats) -> Floats:
    return np.ascontiguousarray(values.T)


def _largest(columns: Floats) -> Floats:
    """The value of largest magnitude of each block, the first where several are alike."""
    places = np.abs(columns).argmax(axis=0)
    largest: Floats = np.take_along_axis(columns, places[None], axis=0)[0]
    return largest


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, or 0 where that is infinite: there the float16 scale is 0 and codes are free."""
    inverse = np.float32(1) / scale
    inverse[np.isinf(inverse)] = 0
    return inverse


def _half(values: Floats, name: str) -> Floats:
    """Rounded to float16; FormatError where that is not finite."""
    stored: NDArray[np.float32] = values.astype(np.float16).astype(np.float32)
    if not np.isfinite(stored).all():
        raise FormatError(
            f"values to store as {name}",
            "some are not finite, or too large for the format's float16 scale",
            "Keep this tensor in its own format, or choose bf16",
        )
    return stored


def _nibbles(codes: Floats, middle: int) -> Bytes:
    """Codes + middle, four bits each, [16, count]."""
    return _packed((codes + np.float32(middle)).astype(np.uint8))


def _five_bits(codes: Floats, middle: int) -> Bytes:
    """Codes + middle, five bits each, [20, count]."""
    whole = (codes + np.float32(middle)).astype(np.uint8)
    return np.concatenate([np.packbits(whole >> 4, axis=0, bitorder="little"), _packed(whole)])


def _packed(codes: Bytes) -> Bytes:
    low, high = codes[:16], codes[16:]
    return low & np.uint8(15) | high << np.uint8(4)


def _bytes(codes: Floats) -> Bytes:
    return codes.astype(np.int8).view(np.uint8)


def _store(blocks: Bytes, codes: Bytes, *halves: Floats) -> None:
    """Numbers that float16 holds, one after another, and then the codes [bytes, count]."""
    for place, each in enumerate(halves):
        blocks[:, 2 * place : 2 * place + 2] = each.astype("<f2")[:, None].view(np.uint8)
    blocks[:, 2 * len(halves) :] = codes.T
