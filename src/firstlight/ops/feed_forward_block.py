"""A layer's feed-forward network as one op, from the residual stream back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.elementwise import Activation
from firstlight.ops.parts import (
    Norm,
    Product,
    apply_norm,
    apply_product,
    join_residual,
    product_bytes,
    product_values,
)

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any


@dataclass(frozen=True, eq=False)
class FeedForwardBlock:
    """What one layer's feed-forward network is made of, on one backend.

    Made once per layer; a backend may keep what it derives from a block for as long as that lives.

    Attributes:
        gate, up: products of the normed stream [n, hidden_size] -> [n, width].
        down: product [n, width] -> [n, hidden_size].
        activation: as in `gate`.
        pre_norm, post_norm: of the stream before the block, and of the block's result; None:
            not normed.
        residual_scale: factor of what is added to the stream; None: as in `join_residual`.
    """

    gate: Product
    up: Product
    down: Product
    activation: Activation
    pre_norm: Norm | None = None
    post_norm: Norm | None = None
    residual_scale: float | None = 1.0


def _feed_forward_block_cost(x: Tensor, block: FeedForwardBlock) -> Cost:
    products = (block.gate, block.up, block.down)
    rows = x.shape[0]
    return Cost(
        product_bytes(*products) + 8 * x.size,
        2 * rows * product_values(*products) + 8 * rows * block.up.weight.shape[0] + 12 * x.size,
    )


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="two products in a row, each with the tolerance of `linear`",
        tipped=2.0**-8,
    ),
    _feed_forward_block_cost,
    composite=True,
)
def feed_forward_block(ops: Ops, x: Tensor, block: FeedForwardBlock) -> Tensor:
    """x + residual_scale * post_norm(down(activation(gate(y)) * up(y))) with y = pre_norm(x).

    Shazeer 2020 (arXiv:2002.05202), equation 6, with the norms and the sum around it.

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream.
        block: the layer's tensors and numbers.

    Returns:
        float32 [n, hidden_size].
    """
    normed = apply_norm(ops, x, block.pre_norm)
    gate, up = apply_product(ops, normed, block.gate), apply_product(ops, normed, block.up)
    out = apply_product(ops, ops.gate(gate, up, block.activation), block.down)
    return join_residual(ops, x, out, block.post_norm, block.residual_scale)
