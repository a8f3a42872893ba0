"""Attention over paged streams of keys and values, and the writing of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats, Format
from firstlight.formats.registry import get_format
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding, round_activations
from firstlight.ops.shape import Shape, context_range, rows_range

# The pages of a stream: float32, or uint16 holding bfloat16 bit patterns
# [pages, page_tokens, *entry_shape].
StreamPages = NDArray[Any]


def read_entries(entries: StreamPages) -> Floats:
    """Stream entries as float32: uint16 holds the upper half of a float32 (bfloat16)."""
    if entries.dtype == np.uint16:
        return (entries.astype(np.uint32) << 16).view(np.float32)
    return entries


def round_entries(values: Floats, dtype: np.dtype[Any]) -> StreamPages:
    """float32 values as a stream of that dtype stores them; bfloat16 rounds to nearest even."""
    if dtype == np.uint16:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        quiet_nan = (bits >> 16) | 0x40
        return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
    return values


def state_format(keys: StreamPages, values: StreamPages) -> Format:
    """The format of what attention multiplies queries and weights with, for a RoundingOf."""
    both = keys.dtype == np.uint16 and values.dtype == np.uint16
    return get_format("bf16" if both else "f32")


def _stream_write_cost(pages: StreamPages, values: Floats, rows: PagedRows) -> Cost:
    return Cost(values.size * (4 + pages.dtype.itemsize), 0)


def _stream_write_shape(pages: StreamPages, values: Floats, rows: PagedRows) -> Shape:
    return *pages.shape[2:], pages.dtype.itemsize, rows_range(values.shape[0])


@define(
    Tolerance(0.0, 0.0, "a copy, with the one rounding that bfloat16 prescribes"),
    _stream_write_cost,
    writes=(0,),
    shape=_stream_write_shape,
)
def stream_write(pages: StreamPages, values: Floats, rows: PagedRows) -> None:
    """Store each row's entry at its position.

    Args:
        pages: [pages, page_tokens, *entry_shape], float32 or bfloat16 (as uint16); changed.
        values: float32 [rows, *entry_shape].
        rows: whose page_table has a page for every position written.
    """
    page_index = rows.positions // rows.page_tokens
    page = rows.page_table[rows.row_sequences(), page_index]
    pages[page, rows.positions % rows.page_tokens] = round_entries(values, pages.dtype)


def _attention_cost(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Cost:
    seen = rows.positions.astype(np.int64) + 1
    if window is not None:
        seen = np.minimum(seen, window)
    # State is read once per sequence, for its last row, whose view covers nearly all others'.
    ends = rows.row_starts[1:][np.diff(rows.row_starts) > 0] - 1
    entry = keys[0, 0].nbytes + values[0, 0].nbytes if keys.size else 0
    heads, key_size, value_size = queries.shape[1], keys.shape[-1], values.shape[-1]
    moved = int(seen[ends].sum()) * entry + 4 * (queries.size + len(queries) * heads * value_size)
    return Cost(moved, int(seen.sum()) * heads * 2 * (key_size + value_size))


def attention_shape(
    count: int,
    heads: int,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    window: int | None,
) -> Shape:
    """The shape of attention of `count` rows of queries."""
    # The width of the table stands for the context: positions would have to be searched.
    context = rows.page_table.shape[1] * rows.page_tokens
    if window is not None and window < context:
        context = window
    return (
        heads,
        keys.shape[3],
        keys.shape[2],
        values.shape[-1],
        keys.dtype.itemsize,
        context_range(context),
        rows_range(rows.sequences),
        rows_range(count),
    )


def _attention_shape(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Shape:
    return attention_shape(len(queries), queries.shape[1], keys, values, rows, window)


@define(
    Tolerance(
        relative=5e-6,
        absolute=1e-6,
        reason="float32 dot products and one softmax; an online softmax rescales partial sums; a "
        "weight that tips changes the sum of weights as well",
        tipped=2.0**-9,
    ),
    _attention_cost,
    shape=_attention_shape,
)
def attention(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Floats:
    """softmax(scale * q k^T) v for each row over its own sequence up to its own position.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1; grouped-query attention of Ainslie et al.
    2023 (arXiv:2305.13245): query head h reads key-value head h // (heads / key_value_heads).

    Args:
        queries: float32 [rows, heads, key_size].
        keys: stream pages [pages, page_tokens, key_value_heads, key_size]; the rows' own keys
            have been written already.
        values: stream pages [pages, page_tokens, key_value_heads, value_size].
        rows: where each row's sequence lies.
        scale: factor of the scores, usually key_size ** -0.5.
        window: a row at position p sees positions above p - window and up to p; None: all.
        soft_cap: scores become soft_cap * tanh(scores / soft_cap) before the softmax; None: not.

    Returns:
        float32 [rows, heads, value_size]; scores and sums in float64.
    """
    return attend(queries, keys, values, rows, scale, window, soft_cap, "none")


def attend(
    queries: Floats,
    keys: StreamPages,
    values: StreamPages,
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    rounding: Rounding,
    sinks: Floats | None = None,
) -> Floats:
    """`attention` as kernels compute it that round what they multiply with keys and values.

    Args:
        rounding: "none"; or "bfloat16": queries are rounded, and so are the weights of the softmax
            before they are divided by their sum, which is that of the rounded weights. A weight is
            2^(t - e), t being the score times log2(e) and e the whole number next above the
            largest t: any other whole number gives weights that are rounded alike, so that a kernel
            need not know the largest score beforehand.
        sinks: float32 [heads] as in `attention_with_sinks`, which rounds nothing; or None.
    """
    _, heads, _ = queries.shape
    if rounding == "bfloat16":
        queries = round_activations(queries, rounding)
    key_value_heads, value_size = keys.shape[2], values.shape[3]
    sink = None
    if sinks is not None:
        sink = sinks.astype(np.float64).reshape(key_value_heads, heads // key_value_heads, 1, 1)
    out = np.empty((len(queries), heads, value_size), np.float32)
    for sequence in range(rows.sequences):
        start, stop = rows.row_starts[sequence : sequence + 2]
        if start == stop:
            continue
        positions = rows.positions[start:stop]
        first = 0 if window is None else max(0, int(positions[0]) - window + 1)
        entries = np.arange(first, int(positions[-1]) + 1)
        page = rows.page_table[sequence, entries // rows.page_tokens]
        slot = entries % rows.page_tokens
        key = read_entries(keys[page, slot]).astype(np.float64)
        value = read_entries(values[page, slot]).astype(np.float64)
        query = queries[start:stop].astype(np.float64)
        query = query.reshape(len(query), key_value_heads, heads // key_value_heads, -1)
        scores = scale * np.einsum("rkgd,tkd->kgrt", query, key, optimize=True)
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        hidden = entries[None, :] > positions[:, None]
        if window is not None:
            hidden |= entries[None, :] <= positions[:, None] - window
        scores[..., hidden] = -np.inf
        weights = (
            softmax_weights(scores, rounding)
            if sink is None
            else weights_beside(scores, sink, "none")
        )
        mixed = np.einsum("kgrt,tkd->rkgd", weights, value, optimize=True)
        out[start:stop] = mixed.reshape(len(query), heads, value_size)
    return out


def softmax_weights(scores: NDArray[np.float64], rounding: Rounding) -> NDArray[np.float64]:
    """The softmax of scores, rounded as `attend` says."""
    weights: NDArray[np.float64]
    if rounding == "none":
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    else:
        scores = scores * np.log2(np.e)
        weights = np.exp2(scores - np.ceil(scores.max(axis=-1, keepdims=True)))
        weights = round_activations(weights.astype(np.float32), rounding).astype(np.float64)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def weights_beside(
    scores: NDArray[np.float64], sink: NDArray[np.float64], rounding: Rounding
) -> NDArray[np.float64]:
    """The softmax of scores with one more term in its denominator, e^sink, which is not rounded;
    weights are, as `attend` says."""
    weights: NDArray[np.float64]
    most = np.maximum(scores.max(axis=-1, keepdims=True), sink)
    if rounding == "none":
        weights, beside = np.exp(scores - most), np.exp(sink - most)
    else:
        most = np.ceil(most * np.log2(np.e))
        weights = np.exp2(scores * np.log2(np.e) - most)
        weights = round_activations(weights.astype(np.float32), rounding).astype(np.float64)
        beside = np.exp2(sink * np.log2(np.e) - most)
    weights /= weights.sum(axis=-1, keepdims=True) + beside
    return weights
