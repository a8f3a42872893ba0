"""4-bit codes with a scale and a whole zero for each block of 32: (code - zero) * scale.

That is what compressed-tensors' asymmetric "pack-quantized" files, AWQ and GPTQ can hold. Scales
keep seven significant bits here, so that -zero * scale is a float16 too, and the same values are a
q4_1 (`integer_blocks.py`). What a whole zero costs beside a free minimum: docs/convert.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats

BLOCK = 32
HIGHEST = 15
MIDDLE = 8
SCALE_BITS = 7

# Starts of the search: the step as a share of a block's range over fifteen, and the zero beside the
# one that its lowest value asks for. Each is followed by one least-squares step.
_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84)
_BESIDE = (0, -1, 1)
# The largest magnitude of a block in steps, where zeros are fixed.
_STEPS = (7.0, 7.25, 7.5, 7.75, 8.0, 8.5)
_LARGEST_HALF = 65504
_SMALLEST = 2.0**-24


def fit_zero_points(
    values: Floats, *, symmetric: bool = False
) -> tuple[Bytes, Floats, NDArray[np.uint8]]:
    """The codes with the least squared error that a short search finds.

    Args:
        values: float32 [rows, columns], columns a multiple of 32.
        symmetric: every zero is 8.

    Returns:
        (codes uint8 [rows, columns], scales float32 [rows, blocks], zeros uint8 [rows, blocks]).
        A block of zeros has the scale 1.

    Raises:
        FormatError: a value is not finite, or beyond the range of a float16 scale.
    """
    rows, columns = values.shape
    blocks = np.ascontiguousarray(values.reshape(-1, BLOCK).T)
    best = _Best(blocks)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        (_offer_symmetric if symmetric else _offer_ranges)(blocks, best)
    codes, scale, zero = best.result()
    return (
        np.ascontiguousarray(codes.T).astype(np.uint8).reshape(rows, columns),
        scale.reshape(rows, -1),
        zero.astype(np.uint8).reshape(rows, -1),
    )


def _offer_ranges(blocks: Floats, best: _Best) -> None:
    """Steps and zeros from each block's range: with 0 inside it, and, which serves blocks far from
    0, without."""
    own_low, own_high = blocks.min(axis=0), blocks.max(axis=0)
    low, high = np.minimum(own_low, 0), np.maximum(own_high, 0)
    ranges = [(low, high - low)]
    if not (np.array_equal(low, own_low) and np.array_equal(high, own_high)):
        ranges.append((own_low, own_high - own_low))
    for floor, width in ranges:
        for share in _SHARES:
            step = _rounded(width * np.float32(share / HIGHEST))
            middle = floor + width * np.float32((1 - share) / 2)
            for beside in _BESIDE:
                zero = np.rint(-middle / step) + np.float32(beside)
                best.offer(step, np.clip(np.nan_to_num(zero), 0, HIGHEST))


def _offer_symmetric(blocks: Floats, best: _Best) -> None:
    """Steps from each block's largest magnitude, of either sign: codes reach one further below zero
    than above."""
    largest = np.abs(blocks).max(axis=0)
    zero = np.full(largest.shape, MIDDLE, np.float32)
    for steps in _STEPS:
        step = _rounded(largest / np.float32(steps))
        best.offer(step, zero)
        best.offer(-step, zero)


class _Best:
    """Of several scales and zeros for each block, those with the least squared error."""

    def __init__(self, blocks: Floats) -> None:
        self._blocks = blocks
        count = blocks.shape[1]
        self._error = np.full(count, np.inf, np.float32)
        self._scale = np.ones(count, np.float32)
        self._zero = np.full(count, MIDDLE, np.float32)

    def offer(self, scale: Floats, zero: Floats) -> None:
        """A scale and zero for each block, and the scale that fits their codes better."""
        distances = self._codes(scale, zero) - zero
        square = np.einsum("ij,ij->j", distances, distances)
        product = np.einsum("ij,ij->j", distances, self._blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            fitted = _rounded(np.where(product != 0, product / square, scale))
        self._keep(scale, zero, distances)
        self._keep(fitted, zero, self._codes(fitted, zero) - zero)

    def result(self) -> tuple[Floats, Floats, Floats]:
        largest = np.abs(self._scale).max(initial=0) * HIGHEST
        if not np.isfinite(self._blocks).all() or largest > _LARGEST_HALF:
            raise FormatError(
                "values to store as int4",
                "some are not finite, or too large for the format's float16 scale",
                "Keep this tensor in its own format, or choose bf16",
            )
        return self._codes(self._scale, self._zero), self._scale, self._zero

    def _codes(self, scale: Floats, zero: Floats) -> Floats:
        with np.errstate(invalid="ignore", over="ignore"):
            codes: Floats = np.rint(self._blocks / scale) + zero
        np.clip(codes, 0, HIGHEST, out=codes)
        return codes

    def _keep(self, scale: Floats, zero: Floats, distances: Floats) -> None:
        difference = distances * scale - self._blocks
        error = np.einsum("ij,ij->j", difference, difference)
        better = error < self._error
        np.copyto(self._error, error, where=better)
        np.copyto(self._scale, scale, where=better)
        np.copyto(self._zero, zero, where=better)


def _rounded(scale: Floats) -> Floats:
    """To seven significant bits, and to what float16 holds; never zero, and 1 where it was zero."""
    exponent = np.frexp(scale)[1]
    step = np.ldexp(1.0, np.maximum(exponent - SCALE_BITS, -24))
    rounded = np.maximum(np.rint(np.abs(scale) / step) * step, _SMALLEST)
    return np.where(scale == 0, 1.0, np.copysign(rounded, scale)).astype(np.float32)
