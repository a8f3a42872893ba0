"""How a product may round the activations that go into it, and what that means exactly.

The products of attention with keys and values are meant too, where these are stored as bfloat16;
what goes into them are queries and the weights of the softmax (`ops/attention.py`, `attend`).

Integer and bfloat16 units multiply several times as fast as float32 ones. A kernel that uses them
rounds its activations first, by one of the rules below, and computes with the rounded values as
exactly as the op's tolerance says: it is checked against the definition on activations rounded by
this module. What the rounding does to a whole model is measured apart (docs/fidelity.md).

A row is rounded by itself, so a token's values do not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from firstlight.formats.base import Floats, Format

Rounding = Literal["none", "mixed16", "bfloat16"]

# Of the products with weights, or with keys and values, of a format.
RoundingOf = Callable[[Format], Rounding]

# The largest magnitude of a fixed-point value. Up to 127 * 256 + 127 it splits into a signed upper
# byte within +-127 and a signed lower byte, which byte-wise multipliers take; mixed16 may add half
# of its largest step, 128.
FIXED16_LIMIT = 127 * 256 - 1

# A row whose largest magnitude is below this is zero: its scale would leave float32's normal range.
FIXED16_LEAST = 2.0**-100

# Columns of a group in which mixed16 shares a step.
MIXED16_GROUP = 32

# Adjacent columns that share a multiple's size: what byte-wise multipliers add up at once.
_QUAD = 4

# The largest multiple of a group's step outside two quads, so that it is a signed byte.
_MOST_MULTIPLE = 127


def no_rounding(format: Format) -> Rounding:
    """Activations as they are, for weights of any format."""
    return "none"


def bfloat16_for_bfloat16(format: Format) -> Rounding:
    """Of kernels that multiply bfloat16 by bfloat16: activations, or queries and the weights of a
    softmax, as the weights or the state are."""
    return "bfloat16" if format.name == "bf16" else "none"


def bfloat16_for_float8(format: Format) -> Rounding:
    """Of kernels that multiply bfloat16 by fp8, whose every code is a value of bfloat16 too; what
    scales a block of them multiplies the float32 sum over its columns."""
    return "bfloat16" if format.name == "f8_e4m3" else "none"


def round_activations(x: Floats, rounding: Rounding) -> Floats:
    """x as a product sees it.

    Args:
        x: float32 [n, columns].
        rounding: "none"; "bfloat16" (to nearest, ties to even); or "mixed16": fixed point (see
            fixed16), rounded in each group of 32 columns to steps that leave all but two quads 8
            bits (see mixed16). A row of mixed16 that holds anything not finite becomes NaN
            altogether.

    Returns:
        float32 [n, columns].
    """
    if rounding == "bfloat16":
        return _bfloat16(x)
    if rounding == "mixed16":
        steps, scale = fixed16(x)
        return mixed16(steps) * scale[:, None]
    return x


def mixed16(steps: Floats) -> Floats:
    """What mixed16 leaves of the whole steps of fixed16, float32 [n, columns].

    Values of a group of 32 columns of a row become whole multiples of one step:
    round_to_even(value * (1 / step)) * step, each operation a float32 rounding. Of the largest
    magnitudes of the group's eight quads (columns 4i to 4i + 3) the third in order sets the step:
    the least whole number of which it is at most 127 times, and which has at most four significant
    bits (kernels spare a multiplication by that). So a multiple needs a single byte but
    in the two quads with the largest values, where it may need two, and outliers cost their
    neighbours nothing. A last group of fewer columns is one that ends with zeros.
    """
    rows, columns = steps.shape
    padded = np.pad(steps, ((0, 0), (0, -columns % MIXED16_GROUP)))
    groups = padded.shape[1] // MIXED16_GROUP
    quads = padded.reshape(rows, groups, MIXED16_GROUP // _QUAD, _QUAD)
    third = np.sort(np.abs(quads).max(axis=3), axis=2)[:, :, -3, None, None]
    step = _four_bits(np.maximum(1, np.ceil(third / np.float32(_MOST_MULTIPLE))))
    rounded = np.rint(quads * (np.float32(1) / step)) * step
    return rounded.reshape(padded.shape)[:, :columns]


def _four_bits(least: Floats) -> Floats:
    """The least whole numbers of at most four significant bits that are no less than these."""
    unit = np.exp2(np.maximum(0, np.frexp(least)[1] - 4)).astype(np.float32)
    rounded: Floats = (np.ceil(least / unit) * unit).astype(np.float32)
    return rounded


def fixed16(x: Floats) -> tuple[Floats, Floats]:
    """(whole steps as float32 [n, columns], size of a step float32 [n]) of each row.

    Every operation is one float32 rounding, so that a kernel can do the same to the bit:
    scale = maximum / 32639, steps = round_to_even(x * (32639 / maximum)).
    """
    limit = np.float32(FIXED16_LIMIT)
    with np.errstate(all="ignore"):
        most = np.abs(x).max(axis=1, initial=0.0).astype(np.float32)
        small = most < np.float32(FIXED16_LEAST)
        scale = np.where(small, np.float32(0), most / limit)
        factor = np.where(small, np.float32(0), limit / most)
        scale = np.where(np.isfinite(most), scale, np.float32(np.nan))
        steps = np.rint(x * factor[:, None])
    return np.where(np.isfinite(most)[:, None], steps, np.float32(0)), scale


def _bfloat16(x: Floats) -> Floats:
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))
