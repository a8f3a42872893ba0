"""What kernels of attention are made of: exact products, and a softmax that goes on block by block.

Scores are kept as exponents of two. A row's state is the largest exponent so far (`most`), the sum
of its weights (`total`) and of its weighted values, both as multiples of 2^most: the online softmax
of Milakov and Gimelshein 2018 (arXiv:1805.02867), as FlashAttention uses it (Dao et al. 2022,
arXiv:2205.14135, algorithm 1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from firstlight.backends.torch.triton.launching import interpreted

NOTHING = tl.constexpr(-1.0e30)
"""`most` of a row that has seen nothing: finite, so that differences of two are numbers."""


_INTERPRETED = tl.constexpr(interpreted())
"""Triton's interpreter cuts where it should round to bfloat16, and multiplies the bits of such
numbers; compiled kernels do neither."""


@triton.jit
def product(left: tl.tensor, right: tl.tensor, sums: tl.tensor, PRODUCT: tl.constexpr) -> tl.tensor:
    """sums + left @ right, in float32.

    Args:
        left: [m, k], float32.
        right: [k, n], bfloat16 or float32.
        PRODUCT: "bfloat16": `left` is rounded to bfloat16; "parts": `right` is bfloat16, and `left`
            the sum of three bfloat16 numbers, which hold all of its 24 bits; "float32": both are
            multiplied as they are.
    """
    if PRODUCT == "float32":
        sums = tl.dot(left, right, sums, input_precision="ieee")
    else:
        upper = _round(left)
        if PRODUCT == "parts":
            middle = _round(left - upper)
            sums = _narrow_product(left - upper - middle, right, sums)
            sums = _narrow_product(middle, right, sums)
        sums = _narrow_product(upper, right, sums)
    return sums


@triton.jit
def _narrow_product(left: tl.tensor, right: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """Of float32 that is exact in bfloat16, and bfloat16."""
    if _INTERPRETED:
        sums = tl.dot(left, right.to(tl.float32), sums, input_precision="ieee")
    else:
        sums = tl.dot(left.to(tl.bfloat16), right, sums)
    return sums


@triton.jit
def _round(x: tl.tensor) -> tl.tensor:
    """float32, rounded to bfloat16: to nearest, ties to even."""
    if _INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.bfloat16).to(tl.float32)
    return x


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """To float32's precision also near zero: by its series there."""
    square = x * x
    series = 1.0 + square * (
        -1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))
    )
    size = tl.abs(x)
    # 1 - 2 / (e^(2 size) + 1); where that overflows, it is 1.
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.25, x * series, tl.where(x < 0, -far, far))


@triton.jit
def weigh(
    exponents: tl.tensor, most: tl.tensor, total: tl.tensor, PRODUCT: tl.constexpr
) -> tl.tensor:
    """(weights, most, total, faded) after a block of scores.

    Args:
        exponents: float32 [rows, positions]; -inf where a row sees nothing.
        most, total: float32 [rows], before.
        PRODUCT: "bfloat16": weights are rounded, and `most` is a whole number, as
            ops.attention.attend defines it; else weights are not rounded.

    Returns:
        weights: float32 [rows, positions].
        most, total: float32 [rows], after.
        faded: float32 [rows]; what sums of weighted values so far are to be multiplied by.
    """
    largest = tl.max(exponents, 1)
    if PRODUCT == "bfloat16":
        largest = tl.ceil(largest)
    largest = tl.maximum(most, largest)
    weights = tl.exp2(exponents - largest[:, None])
    if PRODUCT == "bfloat16":
        weights = _round(weights)
    faded = tl.exp2(most - largest)
    return weights, largest, total * faded + tl.sum(weights, 1), faded
