# mypy: disable-error-code=no-untyped-def
"""Gates on each value by itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.kernel import Parameter
from firstlight.backends.torch.triton.finishing import gated
from firstlight.backends.torch.triton.launching import on
from firstlight.backends.torch.triton.sizes import quotient
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import ClampedSwish

PARAMETERS = (Parameter("size", (1024, 512, 2048, 4096), 1024),)


def gate(
    gate_values: torch.Tensor, up: torch.Tensor, activation: Activation, size: int = 1024
) -> torch.Tensor:
    """The op of that name."""
    return _each(gate_values, up, activation, (0.0, 0.0, 0.0), size)


def clamped_gate(
    gate_values: torch.Tensor, up: torch.Tensor, numbers: ClampedSwish, size: int = 1024
) -> torch.Tensor:
    """The op of that name."""
    return _each(gate_values, up, "clamped", (numbers.limit, numbers.slope, numbers.offset), size)


def _each(
    gate_values: torch.Tensor,
    up: torch.Tensor,
    gating: str,
    numbers: tuple[float, float, float],
    size: int,
) -> torch.Tensor:
    gate_values, up = gate_values.contiguous(), up.contiguous()
    out = torch.empty_like(up)
    if out.numel():
        with on(up.device):
            _gates[(quotient(out.numel(), size),)](
                gate_values, up, out, out.numel(), *numbers, GATING=gating, SIZE=size
            )
    return out


@triton.jit
def _gates(
    gate_values, up, out,
    count, limit, slope, offset,
    GATING: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < count
    left = tl.load(gate_values + place, mask=inside, other=0.0)
    right = tl.load(up + place, mask=inside, other=0.0)
    tl.store(out + place, gated(left, right, limit, slope, offset, GATING), mask=inside)
