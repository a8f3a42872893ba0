"""Mixtures of experts without a wait for the device: which experts are needed is read there.

Kernels find an expert's weights by its number in a table of addresses, so that they stay where they
lie, each by itself. A few rows go pair by pair; of many, pairs with one expert make up tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from firstlight.backends.kernel import Kernel
from firstlight.backends.torch.experts import ExpertsKernels, Integers
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.few_rows import MOST_ROWS
from firstlight.backends.torch.triton.grouping import grouped
from firstlight.backends.torch.triton.operands import Operand, experts_operand
from firstlight.backends.torch.triton.products import TritonProducts, alike
from firstlight.backends.torch.triton.request import Request
from firstlight.backends.torch.triton.rows import MOST_COLUMNS, joined, normed
from firstlight.backends.torch.triton.sizes import quotient
from firstlight.backends.torch.triton.tiles import MOST_GATED_ROWS, tile_rows
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.gating import Gating
from firstlight.ops.parts import Product


@dataclass(frozen=True, eq=False)
class _Experts:
    """The weights of a block's experts."""

    gate: Operand
    up: Operand
    down: Operand


class TritonExperts:
    """The kernels of one device.

    Args:
        products: of that device.
    """

    def __init__(self, transfer: Transfer, products: TritonProducts) -> None:
        self._products = products
        self._plain = ExpertsKernels(transfer, products, products.rounding)
        self._experts: WeakKeyDictionary[ExpertsBlock, _Experts | None] = WeakKeyDictionary()

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel(
                "experts_block", "by address", self.experts_block, self._takes,
                rounding=self._products.rounding,
            ),
        )  # fmt: skip

    def experts_block(
        self, x: torch.Tensor, block: ExpertsBlock, token_ids: Integers
    ) -> torch.Tensor:
        experts = self._experts_of(block)
        assert experts is not None
        stream = x if block.pre_norm is None else normed(x, block.pre_norm)
        given = self._products.activations(stream)
        places, weights = self._plain.choose_for(stream, block, token_ids)
        # Each row's pairs in the order of experts, in which they are summed.
        places, order = torch.sort(places, dim=1)
        weights = weights.gather(1, order)
        whole = len(block.experts) == block.router.weight.shape[0]
        chosen = (places if whole else _here(places, block)).reshape(-1).contiguous()
        results = self._results(stream, given, block, experts, chosen, weights)
        shared, shared_logits = None, None
        if block.shared is not None:
            shared = self._shared(stream, given, block.shared, block.gating)
            if block.shared_gate is not None:
                shared_logits = self._plain.product(stream, block.shared_gate)
        scale = block.residual_scale
        return joined(
            None if scale is None else x, results, places.shape[1], shared, shared_logits,
            block.post_norm, scale or 0.0, None if whole else chosen,
        )  # fmt: skip

    def _results(
        self,
        stream: torch.Tensor,
        given: torch.Tensor,
        block: ExpertsBlock,
        experts: _Experts,
        chosen: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """float32 [n * top_k, columns]: each pair's result, weighed; of a pair whose expert is
        elsewhere, whatever memory held."""
        count, top_k = weights.shape
        factors: torch.Tensor | None = weights.reshape(-1).contiguous()
        rows_each = top_k
        if block.weighted_before:
            weighed = stream[:, None, :] * weights[:, :, None]
            given = self._products.activations(weighed.reshape(count * top_k, -1))
            factors, rows_each = None, 1
        groups = None
        if count > MOST_ROWS:
            expected = quotient(len(chosen), block.router.weight.shape[0])
            rows = tile_rows(expected, MOST_GATED_ROWS)
            groups = grouped(chosen, len(block.experts), rows)
        compute = self._products.compute
        inner = compute(
            Request(
                given, experts.gate, experts.up, block.gating, chosen, rows_each,
                narrow=self._products.dtype == torch.bfloat16,
            ),
            groups,
        )  # fmt: skip
        return compute(Request(inner, experts.down, experts=chosen, factors=factors), groups)

    def _shared(
        self, stream: torch.Tensor, given: torch.Tensor, expert: Expert, gating: Gating
    ) -> torch.Tensor:
        products = self._products
        gate, up, down = (products.operand(each) for each in (expert.gate, expert.up, expert.down))
        if gate is None or up is None or down is None or not alike(gate, up):
            return self._plain.expert(stream, expert, gating)
        # What is left to the library takes its activations as they are.
        if not (products.serves(gate, len(given)) and products.serves(down, len(given))):
            return self._plain.expert(stream, expert, gating)
        return products.compute(Request(products.gated(given, gate, up, gating), down))

    def _takes(self, x: torch.Tensor, block: ExpertsBlock, token_ids: Integers) -> bool:
        fits = len(x) > 0 and x.shape[-1] <= MOST_COLUMNS
        return fits and self._experts_of(block) is not None

    def _experts_of(self, block: ExpertsBlock) -> _Experts | None:
        """A block's weights, whose addresses are put on the device once."""
        if block not in self._experts:
            self._experts[block] = self._put(block)
        return self._experts[block]

    def _put(self, block: ExpertsBlock) -> _Experts | None:
        gate = self._operand([expert.gate for expert in block.experts])
        up = self._operand([expert.up for expert in block.experts])
        down = self._operand([expert.down for expert in block.experts])
        if gate is None or up is None or down is None or not alike(gate, up):
            return None
        return _Experts(gate, up, down)

    def _operand(self, products: list[Product]) -> Operand | None:
        if any(self._products.operand(product) is None for product in products):
            return None
        return experts_operand(products, products[0].weight.data.device)


def _here(places: torch.Tensor, block: ExpertsBlock) -> torch.Tensor:
    """Experts that the router has chosen as places among a block's own; -1: it is elsewhere."""
    found = places - block.first
    return found.masked_fill((found < 0) | (found >= len(block.experts)), -1)
