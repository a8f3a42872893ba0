"""A layer's attention as one op, from the residual stream back to it, defined by smaller ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firstlight.ops.contract import Cost, Tolerance, define, get_op
from firstlight.ops.paging import PagedRows
from firstlight.ops.parts import (
    Norm,
    Product,
    apply_norm,
    apply_product,
    join_residual,
    product_bytes,
    product_values,
)

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """What one layer's attention is made of, on one backend.

    Made once per layer; a backend may keep what it derives from a block for as long as that lives.

    Attributes:
        query, key, value: products of the normed stream [n, hidden_size] that give
            [n, heads * head_size], and twice [n, key_value_heads * head_size].
        output: product [n, heads * head_size] -> [n, hidden_size].
        scale: factor of the scores.
        pre_norm, post_norm: of the stream before the block, and of the block's result; None:
            not normed.
        query_norm, key_norm: of size `head_size` (each head by itself) or of the whole
            projection; None: not normed.
        window, soft_cap: as in `attention`.
        interleaved: as in `rotary`.
        residual_scale: factor of what is added to the stream; None: as in `join_residual`.
        sinks: as in `attention_with_sinks`, which has no soft cap; None: there are none.
    """

    heads: int
    key_value_heads: int
    head_size: int
    query: Product
    key: Product
    value: Product
    output: Product
    scale: float
    pre_norm: Norm | None = None
    post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    window: int | None = None
    soft_cap: float | None = None
    interleaved: bool = False
    residual_scale: float | None = 1.0
    sinks: Tensor | None = None


def _attention_block_cost(
    x: Tensor,
    block: AttentionBlock,
    keys: Tensor,
    values: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor | None,
) -> Cost:
    products = (block.query, block.key, block.value, block.output)
    count = x.shape[0]
    entry = 4 * block.key_value_heads * block.head_size
    queries = _Shape((count, block.heads, block.head_size))
    seen = get_op("attention").cost(
        queries, keys, values, rows, block.scale, block.window, block.soft_cap
    )
    weights, multiplied = product_bytes(*products), product_values(*products)
    return Cost(
        weights + 8 * x.size + 2 * count * entry + seen.bytes_moved - 8 * queries.size,
        2 * count * multiplied + 12 * x.size + seen.operations,
    )


@dataclass(frozen=True)
class _Shape:
    """As much of a tensor as a cost needs to know."""

    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return self.shape[0]


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="two products in a row with a softmax between them, each with its own tolerance",
        tipped=2.0**-8,
    ),
    _attention_block_cost,
    composite=True,
    writes=(2, 3),
)
def attention_block(
    ops: Ops,
    x: Tensor,
    block: AttentionBlock,
    keys: Tensor,
    values: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor | None,
) -> Tensor:
    """x + residual_scale * post_norm(output(attention(...))) of queries, keys and values that are
    products of pre_norm(x).

    Queries and keys are normed where the block says so, then turned (`rotary`); the rows' keys and
    values are written into their streams before attention reads those.

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream.
        block: the layer's tensors and numbers.
        keys: stream pages [pages, page_tokens, key_value_heads, head_size]; changed.
        values: stream pages of the same shape; changed.
        rows: where each row's sequence lies, in both streams.
        cosine_sine: as in `rotary`; None: the layer has no rotary embedding.

    Returns:
        float32 [n, hidden_size].
    """
    count = x.shape[0]
    normed = apply_norm(ops, x, block.pre_norm)

    def project(product: Product, norm: Norm | None, heads: int) -> Tensor:
        out = apply_product(ops, normed, product)
        if norm is not None:
            out = apply_norm(ops, out.reshape((count, out.shape[1] // norm.size, norm.size)), norm)
        return out.reshape((count, heads, block.head_size))

    query = project(block.query, block.query_norm, block.heads)
    key = project(block.key, block.key_norm, block.key_value_heads)
    value = project(block.value, None, block.key_value_heads)
    if cosine_sine is not None:
        query = ops.rotary(query, cosine_sine, block.interleaved)
        key = ops.rotary(key, cosine_sine, block.interleaved)
    ops.stream_write(keys, key, rows)
    ops.stream_write(values, value, rows)
    if block.sinks is None:
        mixed = ops.attention(query, keys, values, rows, block.scale, block.window, block.soft_cap)
    else:
        mixed = ops.attention_with_sinks(
            query, keys, values, rows, block.scale, block.window, block.sinks
        )
    out = apply_product(ops, mixed.reshape((count, block.heads * block.head_size)), block.output)
    return join_residual(ops, x, out, block.post_norm, block.residual_scale)
