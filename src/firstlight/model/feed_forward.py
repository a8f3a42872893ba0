"""The feed-forward block of one layer."""

from __future__ import annotations

import numpy as np

from firstlight.model.feed_forward_spec import (
    ExpertSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedFeedForwardSpec,
)
from firstlight.model.parts import norm, product
from firstlight.model.spec import ResidualSpec
from firstlight.model.weights import Weights
from firstlight.ops import Expert, ExpertsBlock, FeedForwardBlock


def feed_forward(
    spec: FeedForwardSpec, residual: ResidualSpec, weights: Weights
) -> FeedForwardBlock | ExpertsBlock:
    """The block, as the op of its kind takes it."""
    if isinstance(spec, ExpertsSpec):
        return experts_block(spec, residual, weights)
    return feed_forward_block(spec, residual, weights)


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
        post_norm=norm(residual.block_norm, weights),
        residual_scale=residual.block_scale,
    )


def experts_block(spec: ExpertsSpec, residual: ResidualSpec, weights: Weights) -> ExpertsBlock:
    """The block, as the op `experts_block` takes it."""
    routing = spec.routing
    return ExpertsBlock(
        router=product(routing.router, weights),
        routing=routing.numbers,
        experts=tuple(_expert(each, weights) for each in spec.experts),
        gating=spec.gating,
        correction=None if routing.correction is None else weights[routing.correction],
        hash_table=None if routing.hash_table is None else weights.table(routing.hash_table),
        shared=None if spec.shared is None else _expert(spec.shared, weights),
        shared_gate=None if spec.shared_gate is None else product(spec.shared_gate, weights),
        weighted_before=spec.weighted_before,
        pre_norm=norm(residual.pre_norm, weights),
        post_norm=norm(residual.block_norm, weights),
        residual_scale=residual.block_scale,
        first=spec.first,
        use=np.zeros(len(spec.experts), np.int64),
        places=np.zeros((len(spec.experts), 3, 2), np.int64),
    )


def _expert(spec: ExpertSpec, weights: Weights) -> Expert:
    return Expert(
        product(spec.gate, weights), product(spec.up, weights), product(spec.down, weights)
    )
