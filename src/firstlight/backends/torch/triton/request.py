"""A product as it is asked of a kernel, whichever form computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firstlight.backends.torch.triton.operands import Operand
from firstlight.ops.gating import ClampedSwish, Gating


@dataclass(frozen=True, eq=False)
class Request:
    """result = residual + residual_scale * factor * gating(x @ weight.T + bias), or a part of it.

    Attributes:
        x: [n, columns], float32 or bfloat16: activations as they are multiplied.
        operand: the weight; of a gated product the gate's.
        other: of a gated product the weight of what is gated, alike but for values; else None.
        joined: what a gated product joins the two with; None: it is not gated.
        experts: int64 [pairs]: each pair of a row and an expert is a row of the result; -1: that
            row is not computed. None: the operand is one weight, and every row of x has a row of
            the result.
        rows_each: pairs of each row of x: pair p has row p // rows_each.
        factors: float32, of each row of the result; None: one.
        residual: float32 of the result's shape; None: nothing is added.
        residual_scale: factor of what is added to it.
        narrow: whether the result is rounded to bfloat16: it is what another product multiplies.
        rounds: whether x is float32 and rounded to bfloat16 as it is read; of few rows alone.
    """

    x: torch.Tensor
    operand: Operand
    other: Operand | None = None
    joined: Gating | None = None
    experts: torch.Tensor | None = None
    rows_each: int = 1
    factors: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    residual_scale: float = 1.0
    narrow: bool = False
    rounds: bool = False

    @property
    def grouped(self) -> bool:
        return self.experts is not None

    @property
    def gating(self) -> str:
        """As `finishing.gated` takes it; empty: not gated."""
        if self.joined is None:
            return ""
        return "clamped" if isinstance(self.joined, ClampedSwish) else self.joined

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """residual_scale, and limit, slope and offset of a clamped gate."""
        joined = self.joined
        if isinstance(joined, ClampedSwish):
            return self.residual_scale, joined.limit, joined.slope, joined.offset
        return self.residual_scale, 0.0, 0.0, 0.0

    def new_result(self) -> torch.Tensor:
        """[n or pairs, outputs] for the result."""
        count = len(self.x) if self.experts is None else len(self.experts)
        dtype = torch.bfloat16 if self.narrow else torch.float32
        return torch.empty((count, self.operand.outputs), dtype=dtype, device=self.x.device)
