"""From the residual stream to logits as one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.parts import (
    Norm,
    Product,
    apply_norm,
    apply_product,
    product_bytes,
    product_values,
)

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any


@dataclass(frozen=True, eq=False)
class Head:
    """What a model's output head is made of, on one backend.

    Made once per model; a backend may keep what it derives from a head for as long as that lives.

    Attributes:
        product: [n, hidden_size] -> [n, vocabulary_size].
        norm: of the stream before the product; None: not normed.
        scale: factor of the logits.
        soft_cap: as in `soft_cap`; None: not.
    """

    product: Product
    norm: Norm | None = None
    scale: float = 1.0
    soft_cap: float | None = None


def _logits_cost(x: Tensor, head: Head, wanted: NDArray[np.int32]) -> Cost:
    vocabulary, columns = head.product.weight.shape
    count = len(wanted)
    return Cost(
        product_bytes(head.product) + 4 * count * (columns + vocabulary),
        2 * count * product_values(head.product) + 4 * count * columns,
    )


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="a norm, and a product with the tolerance of `linear`",
        tipped=2.0**-8,
    ),
    _logits_cost,
    composite=True,
)
def logits(ops: Ops, x: Tensor, head: Head, wanted: NDArray[np.int32]) -> Tensor:
    """soft_cap(scale * product(norm(rows of x))).

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream after the last layer.
        head: the model's tensors and numbers.
        wanted: int32 [m]; the rows whose logits are wanted.

    Returns:
        float32 [m, vocabulary_size].
    """
    normed = apply_norm(ops, ops.take_rows(x, wanted), head.norm)
    out = apply_product(ops, normed, head.product)
    if head.scale != 1.0:
        out = ops.scale(out, head.scale)
    return out if head.soft_cap is None else ops.soft_cap(out, head.soft_cap)
