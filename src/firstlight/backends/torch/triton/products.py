"""Products and feed-forward networks over weights as they are stored: which form computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from firstlight.backends.kernel import Kernel, Tuned
from firstlight.backends.torch.matrix import DeviceMatrix
from firstlight.backends.torch.products import ProductKernels
from firstlight.backends.torch.triton.coding import rounding_of
from firstlight.backends.torch.triton.few_rows import MOST_ROWS, MOST_SUMS, few_rows
from firstlight.backends.torch.triton.few_rows import PARAMETERS as FEW_ROWS_PARAMETERS
from firstlight.backends.torch.triton.grouping import Groups
from firstlight.backends.torch.triton.operands import Operand, operand_of
from firstlight.backends.torch.triton.request import Request
from firstlight.backends.torch.triton.rows import MOST_COLUMNS, joined, normed
from firstlight.backends.torch.triton.tiles import LEAST_TILE, tiles
from firstlight.backends.torch.triton.tiles import PARAMETERS as TILES_PARAMETERS
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.gating import Gating
from firstlight.ops.parts import Norm, Product
from firstlight.ops.rounding import no_rounding
from firstlight.ops.shape import Shape, rows_range

_FEW_ROWS, _TILES = "few rows", "tiles"

# Values of float32 that a thread reads at once.
_ROUNDED_TOGETHER = 4

# The layout of weights that lie as they are stored, in shapes (ops/shape.py).
_STORED = "stored"


class TritonProducts:
    """The kernels of one device.

    Args:
        plain: the products of what is not decoded here.
        narrow: whether `plain` rounds activations for bfloat16 weights; if not, those weights are
            left to it.
        exact: round no activations at all.
    """

    def __init__(self, plain: ProductKernels, narrow: bool, exact: bool) -> None:
        self._plain = plain
        self._bfloat16 = narrow or exact
        self.dtype = torch.float32 if exact else torch.bfloat16
        """Of activations as they are multiplied."""
        self._read: WeakKeyDictionary[DeviceMatrix, Operand | None] = WeakKeyDictionary()
        self._chosen: dict[Shape, Tuned] = {}
        self.rounding = no_rounding if exact else rounding_of(bfloat16=narrow)

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        return (
            Kernel(
                "linear", _FEW_ROWS, self.linear_of_few_rows, self._takes_few_rows,
                rounding=self.rounding, parameters=FEW_ROWS_PARAMETERS, allows=_allows_few_rows,
            ),
            Kernel(
                "linear", _TILES, self.linear_of_tiles, self._takes_tiles,
                rounding=self.rounding, parameters=TILES_PARAMETERS, allows=_allows_tiles,
            ),
            Kernel(
                "feed_forward_block", "fused", self.feed_forward_block, self._takes_block,
                rounding=self.rounding,
            ),
        )  # fmt: skip

    def operand(self, product: Product) -> Operand | None:
        """A product's weight as kernels take it; None where they do not."""
        weight, bias = product.weight, product.bias
        if weight not in self._read:
            left = weight.format.name == "bf16" and not self._bfloat16
            self._read[weight] = None if left else operand_of(weight)
        found = self._read[weight]
        return found if found is None or bias is None else replace(found, bias=bias)

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Of a product, as they are multiplied."""
        return x.to(self.dtype).contiguous()

    def serves(self, operand: Operand, count: int) -> bool:
        """Whether products of so many rows are computed here: the library is as good where
        nothing is to be decoded."""
        return count > 0 and (count <= MOST_ROWS or operand.coding.name != "bf16")

    def product(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias, as dispatch would have it."""
        operand = self.operand(Product(weight, bias))
        if operand is None or not self.serves(operand, len(x)):
            return self._plain.product(x, weight, bias)
        if len(x) <= MOST_ROWS:
            return self.compute(self._of_few_rows(x, operand))
        return self.compute(Request(self.activations(x), operand))

    def compute(self, request: Request, groups: Groups | None = None) -> torch.Tensor:
        """A product in the form that suits its rows; with groups, in tiles of theirs."""
        if groups is not None:
            chosen = self._values(request.operand, groups.rows, _TILES)
            return tiles(request, groups, **chosen)
        count = 1 if request.grouped else len(request.x)
        if count <= MOST_ROWS:
            return few_rows(request, **self._values(request.operand, count, _FEW_ROWS))
        return tiles(request, None, **self._values(request.operand, count, _TILES))

    def tune(self, shape: Shape, tuned: Tuned | None) -> None:
        """Have products of a shape of `linear` within blocks done so too; None: as without."""
        if tuned is None or tuned.kernel is None:
            self._chosen.pop(shape, None)
        else:
            self._chosen[shape] = tuned

    def _values(self, operand: Operand, count: int, kernel: str) -> dict[str, Any]:
        """What was chosen for such a product of so many rows, by name."""
        shape = operand.coding.name, _STORED, operand.outputs, operand.columns, rows_range(count)
        tuned = self._chosen.get(shape)
        return {} if tuned is None or tuned.choice.kernel != kernel else dict(tuned.values)

    def gated(
        self,
        x: torch.Tensor,
        gate: Operand,
        up: Operand,
        gating: Gating,
    ) -> torch.Tensor:
        """gating(x @ gate.T, x @ up.T), as the activations of another product."""
        narrow = self.dtype == torch.bfloat16
        return self.compute(Request(x, gate, up, gating, narrow=narrow))

    # Ops ---------------------------------------------------------------------------------

    def linear_of_few_rows(
        self,
        x: torch.Tensor,
        weight: DeviceMatrix,
        bias: torch.Tensor | None = None,
        outputs: int = 4,
        unrolled: int = 2,
    ) -> torch.Tensor:
        operand = self._operand(weight, bias)
        return few_rows(self._of_few_rows(x, operand), outputs, unrolled)

    def linear_of_tiles(
        self,
        x: torch.Tensor,
        weight: DeviceMatrix,
        bias: torch.Tensor | None = None,
        outputs: int = 64,
        rows: int = 128,
        warps: int = 4,
        stages: int = 3,
    ) -> torch.Tensor:
        request = Request(self.activations(x), self._operand(weight, bias))
        return tiles(request, None, outputs, rows, warps, stages)

    def feed_forward_block(self, x: torch.Tensor, block: FeedForwardBlock) -> torch.Tensor:
        gate, up, down = self._operands(block)
        assert gate is not None and up is not None and down is not None
        given = self.normed(x, block.pre_norm)
        given = self.gated(given, gate, up, block.activation)
        scale = block.residual_scale
        if block.post_norm is None and scale is not None:
            return self.compute(Request(given, down, residual=x.contiguous(), residual_scale=scale))
        out = self.compute(Request(given, down))
        if block.post_norm is None:
            return out
        stream = None if scale is None else x
        return joined(stream, out, norm=block.post_norm, scale=scale or 0.0)

    def normed(self, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """The activations of a product that a norm gives."""
        return self.activations(x) if norm is None else normed(x, norm, self.dtype)

    # Whether they can --------------------------------------------------------------------

    def _operand(self, weight: DeviceMatrix, bias: torch.Tensor | None) -> Operand:
        operand = self.operand(Product(weight, bias))
        assert operand is not None
        return operand

    def _of_few_rows(self, x: torch.Tensor, operand: Operand) -> Request:
        """Activations are rounded as they are read, but where that would be in smaller pieces
        than the weight is read in."""
        if self.dtype == torch.bfloat16 and operand.coding.together <= _ROUNDED_TOGETHER:
            return Request(x.contiguous(), operand, rounds=True)
        return Request(self.activations(x), operand)

    def _takes_few_rows(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> bool:
        return 0 < len(x) <= MOST_ROWS and self.operand(Product(weight)) is not None

    def _takes_tiles(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> bool:
        if len(x) <= MOST_ROWS:
            return False
        operand = self.operand(Product(weight))
        return operand is not None and self.serves(operand, len(x))

    def _operands(self, block: FeedForwardBlock) -> tuple[Operand | None, ...]:
        return tuple(self.operand(each) for each in (block.gate, block.up, block.down))

    def _takes_block(self, x: torch.Tensor, block: FeedForwardBlock) -> bool:
        gate, up, down = self._operands(block)
        if gate is None or up is None or down is None or x.shape[-1] > MOST_COLUMNS:
            return False
        return alike(gate, up) and self.serves(gate, len(x)) and self.serves(down, len(x))


def alike(gate: Operand, up: Operand) -> bool:
    """Whether two weights can be multiplied in one go."""
    return (
        gate.coding == up.coding
        and gate.outputs == up.outputs
        and (gate.scale_rows, gate.scale_columns) == (up.scale_rows, up.scale_columns)
        and (gate.first_row, gate.scales_across) == (up.first_row, up.scales_across)
        and gate.scales_each == up.scales_each
    )


def _allows_few_rows(
    x: torch.Tensor,
    weight: DeviceMatrix,
    bias: torch.Tensor | None = None,
    *,
    outputs: int,
    unrolled: int,
) -> bool:
    return outputs * len(x) <= MOST_SUMS


_LOW = 64


def _allows_tiles(
    x: torch.Tensor,
    weight: DeviceMatrix,
    bias: torch.Tensor | None = None,
    *,
    outputs: int,
    rows: int,
    warps: int,
    stages: int,
) -> bool:
    """Tiles need not be twice as high as there are rows, nor low where there are many."""
    count = len(x)
    return min(count, _LOW) <= rows < 2 * max(count, LEAST_TILE // 2 + 1)
