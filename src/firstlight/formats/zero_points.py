"""4-bit codes with a scale and a whole-number zero for each block of 32: value = (code - zero) * scale.

That is what compressed-tensors' asymmetric "pack-quantized" files, AWQ and GPTQ can hold. Scales keep
seven significant bits here, so that -zero * scale is a float16 too, and the same values are a q4_1
(`integer_blocks.py`). What the zero's rounding costs beside a free minimum: docs/convert.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats

BLOCK = 32
HIGHEST = 15
SCALE_BITS = 7

# Starts of the search: the step as a share of a block's range over fifteen, and the zero beside the
# one that its lowest value asks for. Each is followed by one least-squares step.
_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84)
_BESIDE = (0, -1, 1)
_SMALLEST = 2.0**-24


def fit_zero_points(values: Floats) -> tuple[Bytes, Floats, NDArray[np.uint8]]:
    """The codes with the least squared error that a short search finds.

    Args:
        values: float32 [rows, columns], columns a multiple of 32.

    Returns:
        (codes uint8 [rows, columns], scales float32 [rows, blocks], zeros uint8 [rows, blocks]).
        A block of zeros has the scale 1.

    Raises:
        FormatError: a value is not finite, or beyond the range of a float16 scale.
    """
    rows, columns = values.shape
    blocks = np.ascontiguousarray(values.reshape(-1, BLOCK).T)
    low = np.minimum(blocks.min(axis=0), 0)
    reach = np.maximum(blocks.max(axis=0), 0) - low
    own_low = blocks.min(axis=0)
    own_reach = blocks.max(axis=0) - own_low
    best = _Best(blocks)
    # With zero inside the block's range, and, which serves blocks far from zero, without.
    for share in _SHARES:
        for floor, width in ((low, reach), (own_low, own_reach)):
            step = _rounded(width * np.float32(share / HIGHEST))
            middle = floor + width * np.float32((1 - share) / 2)
            for beside in _BESIDE:
                with np.errstate(divide="ignore", invalid="ignore"):
                    zero = np.rint(-middle / step) + np.float32(beside)
                best.offer(step, np.clip(np.nan_to_num(zero), 0, HIGHEST))
            if floor is low and np.array_equal(low, own_low):
                break
    codes, scale, zero = best.result()
    return (
        np.ascontiguousarray(codes.T).astype(np.uint8).reshape(rows, columns),
        scale.reshape(rows, -1),
        zero.astype(np.uint8).reshape(rows, -1),
    )


class _Best:
    """Of several scales and zeros for each block, those with the least squared error."""

    def __init__(self, blocks: Floats) -> None:
        self._blocks = blocks
        count = blocks.shape[1]
        self._error = np.full(count, np.inf, np.float32)
        self._scale = np.ones(count, np.float32)
        self._zero = np.full(count, 8, np.float32)

    def offer(self, scale: Floats, zero: Floats) -> None:
        """A scale and zero for each block, and the scale that fits their codes better."""
        distances = self._codes(scale, zero) - zero
        square = np.einsum("ij,ij->j", distances, distances)
        product = np.einsum("ij,ij->j", distances, self._blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            fitted = _rounded(np.where((square > 0) & (product > 0), product / square, scale))
        self._keep(scale, zero, distances)
        self._keep(fitted, zero, self._codes(fitted, zero) - zero)

    def result(self) -> tuple[Floats, Floats, Floats]:
        if not np.isfinite(self._blocks).all() or (self._scale * HIGHEST > 65504).any():
            raise FormatError(
                "values to store as int4",
                "some are not finite, or too large for the format's float16 scale",
                "Keep this tensor in its own format, or choose bf16",
            )
        return self._codes(self._scale, self._zero), self._scale, self._zero

    def _codes(self, scale: Floats, zero: Floats) -> Floats:
        with np.errstate(invalid="ignore", over="ignore"):
            codes = np.rint(self._blocks / scale) + zero
        return np.clip(codes, 0, HIGHEST, out=codes)

    def _keep(self, scale: Floats, zero: Floats, distances: Floats) -> None:
        difference = distances * scale - self._blocks
        error = np.einsum("ij,ij->j", difference, difference)
        better = error < self._error
        np.copyto(self._error, error, where=better)
        np.copyto(self._scale, scale, where=better)
        np.copyto(self._zero, zero, where=better)


def _rounded(scale: Floats) -> Floats:
    """To seven significant bits, and to what float16 holds; above zero, and 1 where it was zero."""
    exponent = np.frexp(scale)[1]
    step = np.ldexp(1.0, np.maximum(exponent - SCALE_BITS, -24))
    rounded = np.maximum(np.rint(scale / step) * step, _SMALLEST)
    return np.where(scale > 0, rounded, 1.0).astype(np.float32)
