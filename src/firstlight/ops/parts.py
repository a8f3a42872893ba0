"""What blocks are made of: products and norms, each with the tensors it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any
PackedWeight = Any


@dataclass(frozen=True, eq=False)
class Product:
    """A packed weight [rows, columns], and a bias float32 [rows] or None."""

    weight: PackedWeight
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """Root mean square norm over the last `size` values; weight float32 [size], or None for one."""

    size: int
    epsilon: float
    weight: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Layer norm over the last `size` values; weight and bias float32 [size]."""

    size: int
    epsilon: float
    weight: Tensor
    bias: Tensor


def apply_product(ops: Ops, x: Tensor, product: Product) -> Tensor:
    """float32 [n, columns] -> [n, rows]."""
    return ops.linear(x, product.weight, product.bias)


def apply_norm(ops: Ops, x: Tensor, norm: Norm | None) -> Tensor:
    """float32 [..., size], normed where there is a norm."""
    return x if norm is None else ops.rms_norm(x, norm.weight, norm.epsilon)


def join_residual(
    ops: Ops, x: Tensor, y: Tensor, post_norm: Norm | None, scale: float | None
) -> Tensor:
    """x + scale * post_norm(y): how a block's result y joins the stream x that it was made of.
    With a scale of None post_norm(y) alone: something else joins it (see `hyper_connections`)."""
    y = apply_norm(ops, y, post_norm)
    return y if scale is None else ops.add(x, y, scale)


def product_bytes(*products: Product) -> int:
    """Bytes of weights and biases, read once."""
    return sum(p.weight.nbytes + (0 if p.bias is None else 4 * p.weight.shape[0]) for p in products)


def product_values(*products: Product) -> int:
    """Values of the weights."""
    return sum(p.weight.shape[0] * p.weight.shape[1] for p in products)
