"""Multi-head, grouped-query and multi-query attention with keys and values as streams."""

from __future__ import annotations

from firstlight.model.attention_spec import GroupedQuerySpec
from firstlight.model.parts import norm, product
from firstlight.model.spec import ResidualSpec
from firstlight.model.stream import StreamSpec
from firstlight.model.weights import Weights
from firstlight.ops import AttentionBlock


def streams(spec: GroupedQuerySpec) -> tuple[StreamSpec, ...]:
    """Keys, after norm and rotation, and values: one entry each per token."""
    entry = (spec.key_value_heads, spec.head_size)
    return (
        StreamSpec("key", entry, window=spec.window),
        StreamSpec("value", entry, window=spec.window),
    )


def attention_block(
    spec: GroupedQuerySpec, residual: ResidualSpec, weights: Weights
) -> AttentionBlock:
    """The block, as the op `attention_block` takes it."""
    return AttentionBlock(
        heads=spec.heads,
        key_value_heads=spec.key_value_heads,
        head_size=spec.head_size,
        query=product(spec.query, weights),
        key=product(spec.key, weights),
        value=product(spec.value, weights),
        output=product(spec.output, weights),
        scale=spec.scale,
        pre_norm=norm(residual.pre_norm, weights),
        post_norm=norm(residual.block_norm, weights),
        query_norm=norm(spec.query_norm, weights),
        key_norm=norm(spec.key_norm, weights),
        window=spec.window,
        soft_cap=spec.soft_cap,
        interleaved=spec.rope is not None and spec.rope.interleaved,
        residual_scale=residual.block_scale,
        sinks=None if spec.sinks is None else weights[spec.sinks],
    )
