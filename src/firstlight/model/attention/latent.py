"""Multi-head latent attention: the latent is a stream, and so are the keys of an indexer."""

from __future__ import annotations

from firstlight.model.attention_spec import IndexerSpec, LatentAttentionSpec
from firstlight.model.part_specs import HeadLinearSpec
from firstlight.model.parts import norm, product
from firstlight.model.spec import ResidualSpec
from firstlight.model.stream import StreamSpec
from firstlight.model.weights import Weights
from firstlight.ops import (
    HeadProduct,
    Indexer,
    LatentAttentionBlock,
    LayerNorm,
    SparseLatentAttentionBlock,
)


def streams(spec: LatentAttentionSpec) -> tuple[StreamSpec, ...]:
    """The normed latent, followed by the turned key that all heads share: one entry a token. The
    keys of an indexer are a second stream."""
    latent = StreamSpec("latent", (spec.entry_size,))
    if spec.indexer is None:
        return (latent,)
    return latent, StreamSpec("index key", (spec.indexer.head_size,))


def attention_block(
    spec: LatentAttentionSpec, residual: ResidualSpec, weights: Weights
) -> LatentAttentionBlock | SparseLatentAttentionBlock:
    """The block, as the op `latent_attention_block` takes it; with an indexer, as
    `sparse_latent_attention_block` does."""
    block = _latent_block(spec, residual, weights)
    if spec.indexer is None:
        return block
    return SparseLatentAttentionBlock(block, _indexer(spec.indexer, weights))


def _indexer(spec: IndexerSpec, weights: Weights) -> Indexer:
    norm = spec.key_norm
    return Indexer(
        heads=spec.heads,
        size=spec.head_size,
        top_k=spec.top_k,
        query=product(spec.query, weights),
        key=product(spec.key, weights),
        key_norm=LayerNorm(norm.size, norm.epsilon, weights[norm.weight], weights[norm.bias]),
        weights=product(spec.weights, weights),
        interleaved=spec.interleaved,
    )


def _latent_block(
    spec: LatentAttentionSpec, residual: ResidualSpec, weights: Weights
) -> LatentAttentionBlock:
    def head_product(part: HeadLinearSpec) -> HeadProduct:
        return HeadProduct(weights[part.weight], part.first, part.size, part.transposed)

    down = spec.query_down
    return LatentAttentionBlock(
        heads=spec.heads,
        latent_size=spec.latent_size,
        plain_size=spec.plain_size,
        rope_size=spec.rope.size,
        value_size=spec.value_size,
        query_down=None if down is None else product(down, weights),
        query_down_norm=norm(spec.query_down_norm, weights),
        query=product(spec.query, weights),
        latent=product(spec.latent, weights),
        latent_norm=norm(spec.latent_norm, weights),
        key_up=head_product(spec.key_up),
        value_up=head_product(spec.value_up),
        output=product(spec.output, weights),
        scale=spec.scale,
        interleaved=spec.rope.interleaved,
        pre_norm=norm(residual.pre_norm, weights),
        post_norm=norm(residual.block_norm, weights),
        residual_scale=residual.block_scale,
    )
