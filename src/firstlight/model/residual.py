"""How a block joins the residual stream."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.model.spec import NormSpec, ResidualSpec
from firstlight.model.weights import Weights
from firstlight.ops import Ops, Tensor


def norm(spec: NormSpec | None, weights: Weights, ops: Ops, x: Tensor) -> Tensor:
    """x normed over its last axis, or x where there is no norm."""
    if spec is None:
        return x
    weight = None if spec.weight is None else weights[spec.weight]
    return ops.rms_norm(x, weight, spec.epsilon)


def join(
    spec: ResidualSpec,
    weights: Weights,
    ops: Ops,
    x: Tensor,
    block: Callable[[Tensor], Tensor],
) -> Tensor:
    """x + scale * post_norm(block(pre_norm(x)))."""
    y = block(norm(spec.pre_norm, weights, ops, x))
    return ops.add(x, norm(spec.post_norm, weights, ops, y), spec.scale)
