# mypy: disable-error-code=no-untyped-def
# ruff: noqa: RET505 (of what follows a return in a branch of constants, Triton knows nothing)
"""Where one expert's weight and what belongs to it lie, as kernels of products ask for them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weight_of(addresses, expert, FORMAT: tl.constexpr):
    """An expert's weight, whose address lies in a table; None stays None."""
    if addresses is None:
        return addresses
    else:
        POINTED: tl.constexpr = tl.bfloat16 if FORMAT == "bf16" else tl.uint8
        return tl.multiple_of(tl.load(addresses + expert).to(tl.pointer_type(POINTED)), 16)


@triton.jit
def part_of(values, expert, each):
    """An expert's own scales or biases, of which each has so many; None stays None."""
    if values is None:
        return values
    else:
        return values + expert * each
