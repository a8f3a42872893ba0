"""Kinds of attention, a file each. A kind declares its streams and describes one layer's block."""

from __future__ import annotations

from firstlight.model.attention import grouped_query, latent
from firstlight.model.spec import AttentionSpec, LatentAttentionSpec, ResidualSpec
from firstlight.model.stream import StreamSpec
from firstlight.model.weights import Weights
from firstlight.ops import (
    AttentionBlock,
    LatentAttentionBlock,
    Ops,
    PagedRows,
    SparseLatentAttentionBlock,
    Tensor,
)

Block = AttentionBlock | LatentAttentionBlock | SparseLatentAttentionBlock

__all__ = ["Block", "attend", "attention_block", "streams"]


def streams(spec: AttentionSpec) -> tuple[StreamSpec, ...]:
    """What one layer remembers; all of it shares one stride and one window."""
    if isinstance(spec, LatentAttentionSpec):
        return latent.streams(spec)
    return grouped_query.streams(spec)


def attention_block(spec: AttentionSpec, residual: ResidualSpec, weights: Weights) -> Block:
    """One layer's attention with its tensors on the backend."""
    if isinstance(spec, LatentAttentionSpec):
        return latent.attention_block(spec, residual, weights)
    return grouped_query.attention_block(spec, residual, weights)


def attend(
    ops: Ops,
    x: Tensor,
    block: Block,
    pages: tuple[Tensor, ...],
    rows: PagedRows,
    cosine_sine: Tensor | None,
) -> Tensor:
    """The residual stream after a block; `pages` are those of the layer's streams, in order."""
    if isinstance(block, LatentAttentionBlock):
        (entries,) = pages
        return ops.latent_attention_block(x, block, entries, rows, cosine_sine)
    if isinstance(block, SparseLatentAttentionBlock):
        entries, index_keys = pages
        return ops.sparse_latent_attention_block(x, block, entries, index_keys, rows, cosine_sine)
    keys, values = pages
    return ops.attention_block(x, block, keys, values, rows, cosine_sine)
