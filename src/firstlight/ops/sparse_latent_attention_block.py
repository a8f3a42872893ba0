"""A layer's latent attention over positions that an indexer selects, as one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from firstlight.ops.contract import Cost, Tolerance, define, get_op
from firstlight.ops.latent_attention_block import (
    LatentAttentionBlock,
    absorb,
    latent_queries,
    leave_latents,
    low_rank,
    raise_heads,
    write_latents,
)
from firstlight.ops.paging import PagedRows
from firstlight.ops.parts import (
    LayerNorm,
    Product,
    apply_norm,
    apply_product,
    product_bytes,
    product_values,
)

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any


@dataclass(frozen=True, eq=False)
class Indexer:
    """What scores positions, on one backend.

    Attributes:
        heads, size: of the index queries; the first values of each turn, by the layer's angles.
        top_k: positions that a row attends to.
        query: product of the layer's low-rank query -> [n, heads * size].
        key: product [n, hidden_size] -> [n, size].
        key_norm: of the keys, before they turn.
        weights: product [n, hidden_size] -> [n, heads].
        interleaved: as in `rotary`; not that of the attention.
    """

    heads: int
    size: int
    top_k: int
    query: Product
    key: Product
    key_norm: LayerNorm
    weights: Product
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class SparseLatentAttentionBlock:
    """Latent attention, and the indexer that says over which positions it runs."""

    attention: LatentAttentionBlock
    indexer: Indexer


def _sparse_latent_attention_block_cost(
    x: Tensor,
    block: SparseLatentAttentionBlock,
    entries: Tensor,
    index_keys: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor,
) -> Cost:
    indexer, attention = block.indexer, block.attention
    products = (indexer.query, indexer.key, indexer.weights)
    seen = rows.positions.astype(np.int64) + 1
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    dense = get_op("latent_attention_block").cost(x, attention, entries, rows, cosine_sine)
    size = attention.latent_size + attention.rope_size
    # What the dense block counts of positions that are not selected.
    unread = int((seen[ends] - np.minimum(seen[ends], indexer.top_k)).sum())
    unseen = int((seen - np.minimum(seen, indexer.top_k)).sum())
    dense_pair = 2 * attention.heads * (size + attention.latent_size)
    index_pair = indexer.heads * (2 * indexer.size + 3)
    scored = seen[seen > indexer.top_k]
    read = int(seen[ends][seen[ends] > indexer.top_k].sum())
    index_bytes = read * indexer.size * index_keys.dtype.itemsize
    return Cost(
        dense.bytes_moved
        + product_bytes(*products)
        + index_bytes
        - unread * size * entries.dtype.itemsize,
        dense.operations
        + 2 * x.shape[0] * product_values(*products)
        + int(scored.sum()) * index_pair
        - unseen * dense_pair,
    )


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="as of `latent_attention_block`, for rows whose selection is the same",
        tipped=2.0**-8,
    ),
    _sparse_latent_attention_block_cost,
    composite=True,
    writes=(2, 3),
)
def sparse_latent_attention_block(
    ops: Ops,
    x: Tensor,
    block: SparseLatentAttentionBlock,
    entries: Tensor,
    index_keys: Tensor,
    rows: PagedRows,
    cosine_sine: Tensor,
) -> Tensor:
    """`latent_attention_block` over the positions that `select_entries` chooses for each row.

    DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv:2512.02556), section 2.1. Beside what the dense block
    does, with h = pre_norm(x) and q the normed low-rank query that it has anyway:

        k^I = rotary(key_norm(key(h))), written to the stream of index keys
        q^I_j = rotary(query(q)), for each index head j
        w = weights(h)

    Of index queries and keys the first `rope_size` values turn. DeepSeek's inference code also
    multiplies both by one Hadamard matrix, which is orthogonal and so changes no product, rounds
    them to fp8, which is left out here, and scales all scores by one positive number, which changes
    no choice. transformers leaves the first two out as well.

    A row that sees at most `top_k` positions sees them all: it is computed as by the dense block.
    Which way a row takes thus follows from its position alone. Rows that are not known yet
    (`PagedRows.known`) all take the second way where one of them could see more than `top_k`: of
    those that do not, every position is chosen.

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream.
        block: the layer's tensors and numbers.
        entries: stream pages [pages, page_tokens, latent_size + rope_size]; changed.
        index_keys: stream pages [pages, page_tokens, indexer.size]; changed.
        rows: where each row's sequence lies.
        cosine_sine: as in `rotary`, of rope_size / 2 angles.

    Returns:
        float32 [n, hidden_size].
    """
    attention, indexer = block.attention, block.indexer
    normed = apply_norm(ops, x, attention.pre_norm)
    write_latents(ops, normed, attention, entries, rows, cosine_sine)
    _write_index_keys(ops, normed, indexer, index_keys, rows, cosine_sine)
    query = low_rank(ops, normed, attention)
    absorbed = absorb(ops, *latent_queries(ops, query, attention, cosine_sine), attention)
    if rows.known:
        sparse = rows.positions >= indexer.top_k
    else:
        sparse = np.full(len(rows.positions), rows.most_positions > indexer.top_k)
    if not sparse.any():
        found = _dense(ops, absorbed, attention, entries, rows)
    elif sparse.all():
        wanted = (normed, query, cosine_sine)
        found = _sparse(ops, absorbed, block, entries, index_keys, rows, wanted)
    else:
        found = _mixed(
            ops, absorbed, block, entries, index_keys, rows, (normed, query, cosine_sine), sparse
        )
    return leave_latents(ops, x, raise_heads(ops, found, attention.value_up), attention)


def _write_index_keys(
    ops: Ops, normed: Tensor, indexer: Indexer, pages: Tensor, rows: PagedRows, cosine_sine: Tensor
) -> None:
    norm, size = indexer.key_norm, indexer.size
    keys = apply_product(ops, normed, indexer.key)
    keys = ops.layer_norm(keys, norm.weight, norm.bias, norm.epsilon)
    keys = ops.rotary(keys.reshape((keys.shape[0], 1, size)), cosine_sine, indexer.interleaved)
    ops.stream_write(pages, keys.reshape((keys.shape[0], size)), rows)


def _dense(
    ops: Ops, absorbed: Tensor, block: LatentAttentionBlock, entries: Tensor, rows: PagedRows
) -> Tensor:
    return ops.latent_attention(absorbed, entries, block.latent_size, rows, block.scale)


def _sparse(
    ops: Ops,
    absorbed: Tensor,
    block: SparseLatentAttentionBlock,
    entries: Tensor,
    index_keys: Tensor,
    rows: PagedRows,
    wanted: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Of rows that see more than they may attend to; `wanted` is what the indexer asks of them: the
    normed stream, the low-rank query, and the angles."""
    attention, indexer = block.attention, block.indexer
    normed, query, cosine_sine = wanted
    shape = (query.shape[0], indexer.heads, indexer.size)
    queries = apply_product(ops, query, indexer.query).reshape(shape)
    queries = ops.rotary(queries, cosine_sine, indexer.interleaved)
    weights = apply_product(ops, normed, indexer.weights)
    selected = ops.select_entries(queries, weights, index_keys, rows, 1, indexer.top_k)
    return ops.selected_latent_attention(
        absorbed, entries, attention.latent_size, rows, selected, attention.scale
    )


def _mixed(
    ops: Ops,
    absorbed: Tensor,
    block: SparseLatentAttentionBlock,
    entries: Tensor,
    index_keys: Tensor,
    rows: PagedRows,
    wanted: tuple[Tensor, Tensor, Tensor],
    sparse: np.ndarray[Any, np.dtype[np.bool_]],
) -> Tensor:
    """Both kinds of rows, each by itself, and put together again in their order."""
    attention = block.attention
    _, heads, size = absorbed.shape
    taken = [np.flatnonzero(kind).astype(np.int32) for kind in (~sparse, sparse)]
    # Taken as rows of one axis, since that is what all backends take.
    flat = absorbed.reshape((absorbed.shape[0], heads * size))
    parts = [ops.take_rows(flat, each).reshape((len(each), heads, size)) for each in taken]
    normed, query, cosine_sine = wanted
    angles = cosine_sine.reshape((cosine_sine.shape[0], 2 * cosine_sine.shape[2]))
    later = (
        ops.take_rows(normed, taken[1]),
        ops.take_rows(query, taken[1]),
        ops.take_rows(angles, taken[1]).reshape((len(taken[1]), 2, cosine_sine.shape[2])),
    )
    found = (
        _dense(ops, parts[0], attention, entries, rows.part(~sparse)),
        _sparse(ops, parts[1], block, entries, index_keys, rows.part(sparse), later),
    )
    width = heads * attention.latent_size
    rows_together = ops.join_columns(*(each.reshape((1, each.shape[0] * width)) for each in found))
    order = np.argsort(np.concatenate(taken), kind="stable").astype(np.int32)
    ordered = ops.take_rows(rows_together.reshape((len(order), width)), order)
    return ordered.reshape((len(order), heads, attention.latent_size))
