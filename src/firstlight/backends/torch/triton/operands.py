"""What kernels of products are given of weights: one weight, or those of many experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from firstlight.backends.torch.matrix import DeviceMatrix, DeviceScales
from firstlight.backends.torch.triton.coding import Coding, coding_of
from firstlight.ops.parts import Product

_ALIGNED = 16
"""Bytes; kernels read so many at once."""


@dataclass(frozen=True, eq=False)
class Operand:
    """One weight, or the weights of many experts, which are alike but for their values.

    Attributes:
        coding: how they are read.
        outputs, columns: of each weight.
        data: the weight's bytes (bfloat16: its values); of experts int64 [experts], addresses.
        bias: float32 [outputs], of experts [experts, outputs]; None: there is none.
        scales: float32 [row blocks, column blocks], of experts [experts, ...]; None: none.
        scale_rows, scale_columns: of their blocks.
        first_row: of the weight among the rows that the scales are for.
    """

    coding: Coding
    outputs: int
    columns: int
    data: torch.Tensor
    bias: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    scale_rows: int = 1
    scale_columns: int = 1
    first_row: int = 0

    @property
    def of_experts(self) -> bool:
        return self.data.dtype == torch.int64

    @property
    def scales_across(self) -> int:
        return 0 if self.scales is None else int(self.scales.shape[-1])

    @property
    def scales_each(self) -> int:
        """Scales of one expert."""
        return 0 if self.scales is None else int(self.scales[0].numel())


def operand_of(weight: DeviceMatrix, bias: torch.Tensor | None = None) -> Operand | None:
    """A weight as kernels take it; None where they do not."""
    coding = coding_of(weight)
    if coding is None or not weight.rows or not weight.columns:
        return None
    found = Operand(coding, weight.rows, weight.columns, weight.data, bias)
    scales = weight.scales
    if not isinstance(scales, DeviceScales):
        return found
    return Operand(
        coding, weight.rows, weight.columns, weight.data, bias,
        scales.values[scales.first_row // scales.rows :], scales.rows, scales.columns,
        scales.first_row % scales.rows,
    )  # fmt: skip


def experts_operand(products: Sequence[Product], device: torch.device) -> Operand | None:
    """The same product of every expert; None where they are not alike, or kernels do not take them.

    Addresses go to the device; the weights must live as long as what is made here.
    """
    found = [operand_of(product.weight, product.bias) for product in products]
    alike = [each for each in found if each is not None]
    first = alike[0] if alike else None
    if first is None or len(alike) < len(found):
        return None
    kinds = {
        (
            each.coding, each.outputs, each.columns, each.bias is None, each.scales is None,
            each.scale_rows, each.scale_columns, each.first_row,
        )
        for each in alike
    }  # fmt: skip
    addresses = [each.data.data_ptr() for each in alike]
    if len(kinds) > 1 or any(address % _ALIGNED for address in addresses):
        return None
    biases = [each.bias for each in alike if each.bias is not None]
    return Operand(
        first.coding,
        first.outputs,
        first.columns,
        torch.tensor(addresses, dtype=torch.int64).to(device),
        torch.stack(biases) if biases else None,
        None if first.scales is None else torch.stack([_own_scales(each) for each in alike]),
        first.scale_rows,
        first.scale_columns,
        first.first_row,
    )


def heads_operand(whole: Operand, heads: int, first: int, size: int) -> Operand | None:
    """Rows of each head as if heads were experts; None where kernels do not take them.

    Args:
        whole: of heads * r rows, of which each head has r; it must live as long as what is made.
        first, size: rows `first` to `first + size` of each head.
    """
    step, row_bytes = whole.outputs // heads, whole.data.nbytes // whole.outputs
    begins = [head * step + first for head in range(heads)]
    addresses = [whole.data.data_ptr() + row * row_bytes for row in begins]
    if any(address % _ALIGNED for address in addresses):
        return None
    scales, first_row = None, 0
    if whole.scales is not None:
        blocks = [divmod(whole.first_row + row, whole.scale_rows) for row in begins]
        first_row = blocks[0][1]
        if any(within != first_row for _, within in blocks):
            return None
        needed = -(-(first_row + size) // whole.scale_rows)
        scales = torch.stack([whole.scales[block : block + needed] for block, _ in blocks])
    return replace(
        whole,
        outputs=size,
        data=torch.tensor(addresses, dtype=torch.int64).to(whole.data.device),
        scales=scales,
        first_row=first_row,
    )


def _own_scales(operand: Operand) -> torch.Tensor:
    """Those of an expert's own rows."""
    assert operand.scales is not None
    return operand.scales[: -(-(operand.first_row + operand.outputs) // operand.scale_rows)]
