"""Scales, minimums and codes of blocks with the least squared error that a short search finds.

A scale taken from a block's extremes, as ggml does, lets one far value make every step larger.
Here a few other scales are tried. To given codes the best scale and minimum are those of the
straight line through the points (code, value), by least squares; how much error it takes off
follows from sums over the block. That line gives new codes and these a new line, as in Lloyd,
"Least squares quantization in PCM" (1982), but with evenly spaced levels. What a start leads to
differs by where the levels fall between the values, so that starts a quarter of a step apart do
more than many rounds.

Blocks lie as columns here, so that a sum over a block adds whole rows. All is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats


def fit_line(
    values: Floats, highest: int, cuts: Sequence[tuple[float, float]]
) -> tuple[Floats, Floats, Floats]:
    """value = scale * code + minimum, with codes 0 to `highest`.

    Args:
        values: float32 [block_values, blocks].
        cuts: the starts: what share of a block's range its codes leave out below and above;
            negative where they reach further.

    Returns:
        (codes float32 [block_values, blocks], whole numbers; scale and minimum float32 [blocks],
        rounded to float16).
    """
    low, high = values.min(axis=0), values.max(axis=0)
    reach = high - low
    lines = _Lines(values, highest)
    best_gain = np.full(reach.shape, -1, np.float32)
    scale, minimum = reach / np.float32(highest), low
    for below, above in cuts:
        step = np.float32((1 - below - above) / highest) * reach
        _, slope, intercept = lines.through(step, low + np.float32(below) * reach)
        gain, slope, intercept = lines.through(slope, intercept)
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scale, slope, where=better)
        np.copyto(minimum, intercept, where=better)
    _, scale, minimum = lines.through(scale, minimum)
    scale, minimum = _half(scale), _half(minimum)
    return lines.codes(scale, minimum), scale, minimum


def fit_slope(
    values: Floats, lowest: int, highest: int, steps: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """value = scale * code, with codes `lowest` to `highest`.

    Args:
        values: float32 [block_values, blocks].
        steps: the starts: scales to try, float32 [blocks] each; of either sign.

    Returns:
        (codes float32 [block_values, blocks], whole numbers; scale float32 [blocks], rounded to
        float16).
    """
    slopes = _Slopes(values, lowest, highest)
    best_gain = np.full(values.shape[1:], -1, np.float32)
    scale = np.zeros(values.shape[1:], np.float32)
    for step in steps:
        _, slope = slopes.through(step)
        gain, slope = slopes.through(slope)
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(scale, slope, where=better)
    scale = _half(slopes.through(scale)[1])
    return slopes.codes(scale), scale


class _Lines:
    """Lines through the values of every block; what all of them need is computed once."""

    def __init__(self, values: Floats, highest: int) -> None:
        self._values, self._highest = values, np.float32(highest)
        self._mean: Floats = values.mean(axis=0, dtype=np.float32)
        # Products with values about their mean keep their digits where all values are alike.
        self._centred: Floats = values - self._mean
        self._codes: Floats = np.empty_like(values)

    def codes(self, scale: Floats, minimum: Floats) -> Floats:
        """The nearest code of each value; overwritten by the next call."""
        inverse = _reciprocal(scale)
        np.multiply(self._values, inverse, out=self._codes)
        np.subtract(self._codes, minimum * inverse, out=self._codes)
        return _rounded(self._codes, np.float32(0), self._highest)

    def through(self, scale: Floats, minimum: Floats) -> tuple[Floats, Floats, Floats]:
        """The best line for the codes that another gives.

        Returns:
            (squared error that it takes off, slope, value at code 0), float32 [blocks] each.
        """
        codes = self.codes(scale, minimum)
        count = np.float32(len(codes))
        mean_code = codes.sum(axis=0) / count
        spread = _dot(codes, codes) - count * mean_code * mean_code
        product = _dot(self._centred, codes)
        # At least 31 / 32 unless all codes are equal; then any slope serves, and 0 is one.
        slope = np.where(spread > 0.5, product / spread, np.float32(0))
        return slope * product, slope, self._mean - slope * mean_code


class _Slopes:
    """Lines through zero and the values of every block."""

    def __init__(self, values: Floats, lowest: int, highest: int) -> None:
        self._values = values
        self._lowest, self._highest = np.float32(lowest), np.float32(highest)
        self._codes: Floats = np.empty_like(values)

    def codes(self, scale: Floats) -> Floats:
        """The nearest code of each value; overwritten by the next call."""
        np.multiply(self._values, _reciprocal(scale), out=self._codes)
        return _rounded(self._codes, self._lowest, self._highest)

    def through(self, scale: Floats) -> tuple[Floats, Floats]:
        """(squared error taken off, slope) of the best line for the codes that a scale gives."""
        codes = self.codes(scale)
        square, product = _dot(codes, codes), _dot(self._values, codes)
        slope = np.where(square > 0.5, product / square, np.float32(0))
        return slope * product, slope


def _rounded(codes: Floats, lowest: np.float32, highest: np.float32) -> Floats:
    """To the nearest whole number within the limits, in place."""
    np.rint(codes, out=codes)
    np.clip(codes, lowest, highest, out=codes)
    return codes


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, or 0 where there is no finite one: all codes are equal there."""
    inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _dot(x: Floats, y: Floats) -> Floats:
    """Of every column of x with that of y."""
    product: Floats = np.einsum("ij,ij->j", x, y)
    return product


def _half(values: Floats) -> Floats:
    rounded: NDArray[np.float32] = values.astype(np.float16).astype(np.float32)
    return rounded
