# mypy: disable-error-code=no-untyped-def
# ruff: noqa: RET505 (of what follows a return in a branch of constants, Triton knows nothing)
"""What is done to sums before they are stored: bias, gate, weight, residual, rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_bfloat16(value):
    """To nearest, ties to even. By hand, since Triton's interpreter cuts instead of rounding."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & -65536
    exact = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
    return exact.to(tl.bfloat16)


@triton.jit
def narrowed(value, NARROW: tl.constexpr):
    """float32 as it is stored: itself, or rounded to bfloat16."""
    if NARROW:
        return to_bfloat16(value)
    else:
        return value


@triton.jit
def gated(
    gate,
    up,
    limit,
    slope,
    offset,
    GATING: tl.constexpr,
):
    """`gate` with the activation of that name, or `clamped_gate` where it is "clamped"."""
    if GATING == "silu":
        return gate * tl.sigmoid(gate) * up
    elif GATING == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    elif GATING == "gelu_tanh":
        # (1 + tanh z) / 2 is the sigmoid of 2 z.
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        return gate * tl.sigmoid(inner) * up
    elif GATING == "relu":
        return tl.where(gate < 0.0, 0.0, gate) * up
    else:
        tl.static_assert(GATING == "clamped")
        bounded = tl.where(gate > limit, limit, gate)
        between = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        return bounded * tl.sigmoid(slope * bounded) * (between + offset)


@triton.jit
def finished(
    total, other, bias, other_bias, factors, residual,
    output, row, place, inside,
    residual_scale, limit, slope, offset, GATING: tl.constexpr,
):  # fmt: skip
    """A product's result from its sums; what is None is not done.

    Args:
        total, other: sums of the product, and of the one that it gates.
        bias, other_bias: float32 of each `output`.
        factors: float32 of each `row`.
        residual: float32 at each `place` of the result, to which residual_scale * result is added.
    """
    if bias is not None:
        total += tl.load(bias + output)
    if GATING != "":
        if other_bias is not None:
            other += tl.load(other_bias + output)
        total = gated(total, other, limit, slope, offset, GATING)
    if factors is not None:
        total *= tl.load(factors + row)
    if residual is not None:
        total = tl.load(residual + place, mask=inside, other=0.0) + residual_scale * total
    return total
