"""The feed-forward block of one layer."""

from __future__ import annotations

from firstlight.model.parts import norm, product
from firstlight.model.spec import GatedFeedForwardSpec, ResidualSpec
from firstlight.model.weights import Weights
from firstlight.ops import FeedForwardBlock


def feed_forward_block(
    spec: GatedFeedForwardSpec, residual: ResidualSpec, weights: Weights
) -> FeedForwardBlock:
    """The block, as the op `feed_forward_block` takes it."""
    return FeedForwardBlock(
        gate=product(spec.gate, weights),
        up=product(spec.up, weights),
        down=product(spec.down, weights),
        activation=spec.activation,
        pre_norm=norm(residual.pre_norm, weights),
        post_norm=norm(residual.post_norm, weights),
        residual_scale=residual.scale,
    )
