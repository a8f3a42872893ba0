"""Kinds of attention, a file each. A kind declares its streams and describes one layer's block."""

from __future__ import annotations

from firstlight.model.angles import Angles
from firstlight.model.attention import compressed, grouped_query, latent
from firstlight.model.attention.compressed import CompressedAttentionBlock
from firstlight.model.attention_spec import AttentionSpec, LatentAttentionSpec
from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.rope import AngleTable
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import ResidualSpec
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

Block = (
    AttentionBlock | LatentAttentionBlock | SparseLatentAttentionBlock | CompressedAttentionBlock
)

__all__ = ["Block", "angle_tables", "attend", "attention_block", "streams"]


def streams(spec: AttentionSpec) -> tuple[StreamSpec, ...]:
    """What one layer remembers."""
    if isinstance(spec, CompressedAttentionSpec):
        return compressed.streams(spec)
    if isinstance(spec, LatentAttentionSpec):
        return latent.streams(spec)
    return grouped_query.streams(spec)


def angle_tables(spec: AttentionSpec) -> tuple[AngleTable, ...]:
    """The rotary tables that one layer asks for."""
    if isinstance(spec, CompressedAttentionSpec):
        return compressed.angle_tables(spec)
    return () if spec.rope is None else (AngleTable(spec.rope),)


def attention_block(spec: AttentionSpec, residual: ResidualSpec, weights: Weights) -> Block:
    """One layer's attention with its tensors on the backend."""
    if isinstance(spec, CompressedAttentionSpec):
        return compressed.attention_block(spec, residual, weights)
    if isinstance(spec, LatentAttentionSpec):
        return latent.attention_block(spec, residual, weights)
    return grouped_query.attention_block(spec, residual, weights)


def attend(
    ops: Ops,
    x: Tensor,
    block: Block,
    pages: tuple[Tensor, ...],
    rows: tuple[PagedRows, ...],
    rope: RopeSpec | None,
    angles: Angles,
) -> Tensor:
    """The residual stream after a block; `pages` and `rows` are those of the layer's streams, in
    order, and `angles` those of the step."""
    if isinstance(block, CompressedAttentionBlock):
        return compressed.attend(ops, x, block, pages, rows, angles)
    table = None if rope is None else angles.of(rope)
    if isinstance(block, LatentAttentionBlock):
        (entries,) = pages
        return ops.latent_attention_block(x, block, entries, rows[0], table)
    if isinstance(block, SparseLatentAttentionBlock):
        entries, index_keys = pages
        return ops.sparse_latent_attention_block(x, block, entries, index_keys, rows[0], table)
    keys, values = pages
    return ops.attention_block(x, block, keys, values, rows[0], table)
