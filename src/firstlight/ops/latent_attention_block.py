"""A layer's multi-head latent attention as one op, from the residual stream back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firstlight.ops.contract import Cost, Tolerance, define, get_op
from firstlight.ops.head_linear import HeadProduct
from firstlight.ops.latent_attention import Expansion
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
class LatentAttentionBlock:
    """What one layer's latent attention is made of, on one backend.

    Made once per layer; a backend may keep what it derives from a block for as long as that lives.

    Attributes:
        latent_size, plain_size, rope_size, value_size: d_c, d_h, d_h^R and the value's d_h of the
            paper.
        query_down, query_down_norm: the query's low-rank product and norm; None: there is none.
        query: product that gives [n, heads * (plain_size + rope_size)].
        latent: product [n, hidden_size] -> [n, latent_size + rope_size].
        key_up: of a head's plain query to the latent, by W_UK's transpose.
        value_up: of a latent to a head's value.
        output: product [n, heads * value_size] -> [n, hidden_size].
        interleaved: as in `rotary`.
        scale, pre_norm, post_norm, residual_scale: as in `AttentionBlock`.
        expanded: make keys and values of all latents anew, instead of taking the up-projections
            into query and result. The same but for rounding; one form serves a model throughout.
    """

    heads: int
    latent_size: int
    plain_size: int
    rope_size: int
    value_size: int
    query_down: Product | None
    query_down_norm: Norm | None
    query: Product
    latent: Product
    latent_norm: Norm | None
    key_up: HeadProduct
    value_up: HeadProduct
    output: Product
    scale: float
    interleaved: bool = True
    pre_norm: Norm | None = None
    post_norm: Norm | None = None
    residual_scale: float | None = 1.0
    expanded: bool = False


@dataclass(frozen=True)
class _Shape:
    """As much of a tensor as a cost needs to know."""

    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return self.shape[0]


def _latent_attention_block_cost(
    x: Tensor,
    block: LatentAttentionBlock,
    entries: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor,
) -> Cost:
    products = [block.query, block.latent, block.output]
    if block.query_down is not None:
        products.append(block.query_down)
    count = x.shape[0]
    queries = _Shape((count, block.heads, block.latent_size + block.rope_size))
    seen = get_op("latent_attention").cost(queries, entries, block.latent_size, rows, block.scale)
    ups = block.heads * block.latent_size * (block.plain_size + block.value_size)
    up_bytes = block.key_up.weight.nbytes
    if block.value_up.weight is not block.key_up.weight:
        up_bytes += block.value_up.weight.nbytes
    outside = 4 * count * block.heads * (queries.shape[2] + block.latent_size)
    weights, multiplied = product_bytes(*products) + up_bytes, product_values(*products) + ups
    return Cost(
        weights + 8 * x.size + 4 * count * queries.shape[2] + seen.bytes_moved - outside,
        2 * count * multiplied + 12 * x.size + seen.operations,
    )


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="as of `attention_block`, with two products more on either side of the softmax",
        tipped=2.0**-8,
    ),
    _latent_attention_block_cost,
    composite=True,
    writes=(2,),
)
def latent_attention_block(
    ops: Ops,
    x: Tensor,
    block: LatentAttentionBlock,
    entries: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor,
) -> Tensor:
    """x + residual_scale * post_norm(output(attention over latents)) of h = pre_norm(x).

    DeepSeek-V2 (arXiv:2405.04434), equations 9 to 19 and 37 to 47, with norms of both latents:

        [c; k] = latent(h)             entry = [norm(c); rotary(k)], written to the stream
        [q_h; r_h] = query(norm(query_down(h))), for each head h
        score_h,t = scale * ((W_UK,h^T q_h) . c_t + rotary(r_h) . k_t)
        out_h = W_UV,h (sum over t of softmax(score_h)_t c_t)

    which is section 2.1.2's absorption: q_h . (W_UK,h c_t) = (W_UK,h^T q_h) . c_t. So attention
    reads `latent_size + rope_size` values of a position, once for all heads.

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream.
        block: the layer's tensors and numbers.
        entries: stream pages [pages, page_tokens, latent_size + rope_size]; changed.
        rows: where each row's sequence lies.
        cosine_sine: as in `rotary`, of rope_size / 2 angles.

    Returns:
        float32 [n, hidden_size].
    """
    normed = apply_norm(ops, x, block.pre_norm)
    write_latents(ops, normed, block, entries, rows, cosine_sine)
    straight, turned = latent_queries(ops, low_rank(ops, normed, block), block, cosine_sine)
    if block.expanded:
        mixed = _expanded(ops, ops.join_columns(straight, turned), block, entries, rows)
    else:
        absorbed = absorb(ops, straight, turned, block)
        found = ops.latent_attention(absorbed, entries, block.latent_size, rows, block.scale)
        mixed = raise_heads(ops, found, block.value_up)
    return leave_latents(ops, x, mixed, block)


# What blocks of latent attention have in common -------------------------------------------


def low_rank(ops: Ops, normed: Tensor, block: LatentAttentionBlock) -> Tensor:
    """What the queries are a product of: the normed stream, or its normed low-rank product."""
    if block.query_down is None:
        return normed
    return apply_norm(ops, apply_product(ops, normed, block.query_down), block.query_down_norm)


def latent_queries(
    ops: Ops, query: Tensor, block: LatentAttentionBlock, cosine_sine: Tensor
) -> tuple[Tensor, Tensor]:
    """Each head's plain query [n, heads, plain_size] and its turned one [n, heads, rope_size]."""
    plain, size = block.plain_size, block.plain_size + block.rope_size
    query = apply_product(ops, query, block.query).reshape((query.shape[0], block.heads, size))
    turned = ops.take_columns(query, plain, size)
    turned = ops.rotary(turned, cosine_sine, block.interleaved)
    return ops.take_columns(query, 0, plain), turned


def write_latents(
    ops: Ops,
    normed: Tensor,
    block: LatentAttentionBlock,
    entries: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor,
) -> None:
    """Write each row's latent and turned key to the stream."""
    count, latent, rope = normed.shape[0], block.latent_size, block.rope_size
    entry = apply_product(ops, normed, block.latent)
    key = ops.take_columns(entry, latent, latent + rope).reshape((count, 1, rope))
    key = ops.rotary(key, cosine_sine, block.interleaved).reshape((count, rope))
    compressed = apply_norm(ops, ops.take_columns(entry, 0, latent), block.latent_norm)
    ops.stream_write(entries, ops.join_columns(compressed, key), rows)


def absorb(ops: Ops, straight: Tensor, turned: Tensor, block: LatentAttentionBlock) -> Tensor:
    """The queries as they meet latents: [n, heads, latent_size + rope_size]."""
    return ops.join_columns(raise_heads(ops, straight, block.key_up), turned)


def raise_heads(ops: Ops, x: Tensor, part: HeadProduct) -> Tensor:
    """`head_linear` with a block's part of a weight."""
    return ops.head_linear(x, part.weight, part.first, part.size, part.transposed)


def leave_latents(ops: Ops, x: Tensor, mixed: Tensor, block: LatentAttentionBlock) -> Tensor:
    """The residual stream after the block, of every head's value [n, heads, value_size]."""
    mixed = mixed.reshape((x.shape[0], block.heads * block.value_size))
    out = apply_product(ops, mixed, block.output)
    return join_residual(ops, x, out, block.post_norm, block.residual_scale)


def _expanded(
    ops: Ops, queries: Tensor, block: LatentAttentionBlock, entries: Tensor, rows: PagedRows
) -> Tensor:
    key, value = block.key_up, block.value_up
    expansion = Expansion(key.first, key.size, key.transposed, value.first, value.size)
    return ops.expanded_latent_attention(
        queries, entries, key.weight, value.weight, expansion, rows, block.scale
    )
