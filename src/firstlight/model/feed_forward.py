"""The feed-forward block of one layer."""

from __future__ import annotations

from firstlight.model.spec import GatedFeedForwardSpec
from firstlight.model.weights import Weights
from firstlight.ops import Ops, Tensor


def feed_forward(spec: GatedFeedForwardSpec, weights: Weights, ops: Ops, x: Tensor) -> Tensor:
    """float32 [n, hidden_size] -> float32 [n, hidden_size]."""
    parts = (spec.gate, spec.up, spec.down)
    gate, up, down = (weights[part.weight] for part in parts)
    biases = None
    if all(part.bias is not None for part in parts):
        biases = tuple(weights[part.bias] for part in parts if part.bias is not None)
    return ops.gated_mlp(x, gate, up, down, spec.activation, biases)
