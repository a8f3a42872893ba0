"""Attention over latents: keys that all heads share, whose first values are the values too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats, Weight
from firstlight.ops.attention import StreamPages, attend, read_entries
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding
from firstlight.ops.shape import Shape, context_range, rows_range


def _seen(rows: PagedRows) -> tuple[int, int]:
    """Positions that rows see: of each sequence once, and of all rows together."""
    seen = rows.positions.astype(np.int64) + 1
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    return int(seen[ends].sum()), int(seen.sum())


def _latent_attention_cost(
    queries: Floats, entries: StreamPages, value_size: int, rows: PagedRows, scale: float
) -> Cost:
    count, heads, size = queries.shape
    once, together = _seen(rows)
    moved = once * size * entries.dtype.itemsize + 4 * count * heads * (size + value_size)
    return Cost(moved, together * heads * 2 * (size + value_size))


def _latent_attention_shape(
    queries: Floats, entries: StreamPages, value_size: int, rows: PagedRows, scale: float
) -> Shape:
    context = rows.page_table.shape[1] * rows.page_tokens
    _, heads, size = queries.shape
    return (
        heads,
        size,
        value_size,
        entries.dtype.itemsize,
        context_range(context),
        rows_range(rows.sequences),
        rows_range(queries.shape[0]),
    )


@define(
    Tolerance(5e-6, 1e-6, "as of `attention`", tipped=2.0**-9),
    _latent_attention_cost,
    shape=_latent_attention_shape,
)
def latent_attention(
    queries: Floats, entries: StreamPages, value_size: int, rows: PagedRows, scale: float
) -> Floats:
    """softmax(scale * q c^T) v, where v is the first `value_size` values of each entry c.

    Multi-query attention (Shazeer 2019, arXiv:1911.02150) whose keys and values are one stream,
    read once.

    Args:
        queries: float32 [rows, heads, size].
        entries: stream pages [pages, page_tokens, size]; the rows' own have been written already.
        value_size: at most size.
        rows: where each row's sequence lies.
        scale: factor of the scores.

    Returns:
        float32 [rows, heads, value_size]; scores and sums in float64.
    """
    return attend_latents(queries, entries, value_size, rows, scale, "none")


def attend_latents(
    queries: Floats,
    entries: StreamPages,
    value_size: int,
    rows: PagedRows,
    scale: float,
    rounding: Rounding,
) -> Floats:
    """`latent_attention` with the rounding of `ops.attention.attend`."""
    keys = entries[:, :, None]
    return attend(queries, keys, keys[..., :value_size], rows, scale, None, None, rounding)


@dataclass(frozen=True)
class Expansion:
    """Which rows of each head make keys and values of a latent, as `head_linear` numbers them.

    Attributes:
        key_transposed: the key's weight takes a plain query to the latent as it is stored, and so a
            latent to the plain key by its transpose; else the other way round.
    """

    key_first: int
    key_size: int
    key_transposed: bool
    value_first: int
    value_size: int


def _expanded_latent_attention_cost(
    queries: Floats,
    entries: StreamPages,
    key_weight: Weight,
    value_weight: Weight,
    expansion: Expansion,
    rows: PagedRows,
    scale: float,
) -> Cost:
    count, heads, size = queries.shape
    once, together = _seen(rows)
    latent, value_size = value_weight.shape[1], expansion.value_size
    plain = size - (entries.shape[-1] - latent)
    moved = once * entries.shape[-1] * entries.dtype.itemsize
    weights = key_weight.nbytes + (0 if value_weight is key_weight else value_weight.nbytes)
    return Cost(
        weights + moved + 4 * count * heads * (size + value_size),
        2 * heads * (once * latent * (plain + value_size) + together * (size + value_size)),
    )


@define(Tolerance(5e-6, 1e-6, "as of `attention`"), _expanded_latent_attention_cost)
def expanded_latent_attention(
    queries: Floats,
    entries: StreamPages,
    key_weight: Weight,
    value_weight: Weight,
    expansion: Expansion,
    rows: PagedRows,
    scale: float,
) -> Floats:
    """Attention with each head's keys and values made anew of the latents.

    DeepSeek-V2 (arXiv:2405.04434), equations 10 to 19: k_t,h = [W_UK,h c_t; k_t^R] and
    v_t,h = W_UV,h c_t for every position t that a row sees.

    Args:
        queries: float32 [rows, heads, plain + rope]; in each head the turned values last.
        entries: stream pages [pages, page_tokens, latent + rope].
        key_weight, value_weight, expansion: the up-projections, as `head_linear` takes them.
        rows: where each row's sequence lies.
        scale: factor of the scores.

    Returns:
        float32 [rows, heads, value_size]; scores and sums in float64.
    """
    count, heads, _ = queries.shape
    latent = value_weight.shape[1]
    shared = entries.shape[-1] - latent
    out = np.empty((count, heads, expansion.value_size), np.float32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        if start == stop:
            continue
        positions = np.arange(int(rows.positions[stop - 1]) + 1)
        page = rows.page_table[sequence, positions // rows.page_tokens]
        seen = read_entries(entries[page, positions % rows.page_tokens]).astype(np.float64)
        hidden = positions[None, :] > rows.positions[start:stop, None]
        for head in range(heads):
            up = _rows_of_head(key_weight, head, heads, expansion.key_first, expansion.key_size)
            plain = seen[:, :latent] @ (up.T if expansion.key_transposed else up)
            key = np.concatenate((plain, seen[:, latent : latent + shared]), axis=1)
            scores = scale * (queries[start:stop, head].astype(np.float64) @ key.T)
            scores[hidden] = -np.inf
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            up = _rows_of_head(
                value_weight, head, heads, expansion.value_first, expansion.value_size
            )
            out[start:stop, head] = scores @ (seen[:, :latent] @ up.T)
    return out


def _rows_of_head(
    weight: Weight, head: int, heads: int, first: int, size: int
) -> NDArray[np.float64]:
    start = head * (weight.shape[0] // heads) + first
    return weight.decode(start, start + size).astype(np.float64)
