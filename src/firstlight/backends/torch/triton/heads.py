"""Products of each head with rows of its own in one weight: the op `head_linear`.

Along the rows of a weight, heads are to a product what experts are: found by address. Down the
columns sums have a kernel of their own (head_columns.py).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from firstlight.backends.kernel import Kernel
from firstlight.backends.torch.matrix import DeviceMatrix
from firstlight.backends.torch.triton.few_rows import MOST_ROWS
from firstlight.backends.torch.triton.grouping import Groups
from firstlight.backends.torch.triton.head_columns import MOST_DOWN_ROWS, down_columns
from firstlight.backends.torch.triton.operands import Operand, heads_operand
from firstlight.backends.torch.triton.products import TritonProducts
from firstlight.backends.torch.triton.request import Request
from firstlight.backends.torch.triton.sizes import quotient
from firstlight.backends.torch.triton.tiles import MOST_HEAD_ROWS, tile_rows
from firstlight.ops.parts import Product

# Heads, and the first row and how many rows of each.
_Rows = tuple[int, int, int]


class TritonHeads:
    """The kernels of one device.

    Args:
        products: of that device.
    """

    def __init__(self, products: TritonProducts) -> None:
        self._products = products
        self._read: WeakKeyDictionary[DeviceMatrix, dict[_Rows, Operand | None]]
        self._read = WeakKeyDictionary()

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        rounding = self._products.rounding
        return (
            Kernel("head_linear", "as stored", self.head_linear, self._takes, rounding=rounding),
        )

    def head_linear(
        self, x: torch.Tensor, weight: DeviceMatrix, first: int, size: int, transposed: bool
    ) -> torch.Tensor:
        count, heads, columns = x.shape
        if transposed:
            operand = self._products.operand(Product(weight))
            assert operand is not None
            return down_columns(x.contiguous(), operand, first, size)
        operand = self._operand(weight, (heads, first, size))
        assert operand is not None
        given = self._products.activations(x)
        groups = None
        if count > MOST_ROWS:
            groups = _groups(count, heads, tile_rows(count, MOST_HEAD_ROWS), x.device)
        chosen = torch.arange(heads, device=x.device).repeat(count)
        request = Request(given.reshape(count * heads, columns), operand, experts=chosen)
        return self._products.compute(request, groups).reshape(count, heads, size)

    def _takes(
        self, x: torch.Tensor, weight: DeviceMatrix, first: int, size: int, transposed: bool
    ) -> bool:
        if not x.numel() or not size:
            return False
        if transposed:
            return len(x) <= MOST_DOWN_ROWS and self._products.operand(Product(weight)) is not None
        return self._operand(weight, (x.shape[1], first, size)) is not None

    def _operand(self, weight: DeviceMatrix, rows: _Rows) -> Operand | None:
        """Each head's rows, whose addresses are put on the device once."""
        found = self._read.setdefault(weight, {})
        if rows not in found:
            whole = self._products.operand(Product(weight))
            found[rows] = None if whole is None else heads_operand(whole, *rows)
        return found[rows]


def _groups(count: int, heads: int, rows: int, device: torch.device) -> Groups:
    """Pairs of a row and a head, as x has them, in tiles of one head each."""
    each = quotient(count, rows)
    head = torch.arange(heads + 1, device=device)
    order = torch.arange(count * heads, device=device).reshape(count, heads).T.reshape(-1)
    return Groups(
        rows, heads * each, head[:heads].repeat_interleave(each), head * count,
        head[:heads] * each, order,
    )  # fmt: skip
