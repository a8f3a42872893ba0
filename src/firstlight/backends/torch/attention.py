"""Attention over paged streams on the device: entries are gathered, then it is two products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from firstlight.backends.base import Kernel
from firstlight.backends.torch.paging import Reading, readings, write_slots
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Softmax:
    """How scores become weights.

    Attributes:
        narrow: queries and weights are rounded to bfloat16, as ops.attention.attend defines it.
    """

    scale: float
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None
    narrow: bool = False


class AttentionKernels:
    """The kernels of one device.

    Args:
        narrow: whether bfloat16 streams may be multiplied as they are, with queries and weights
            of the softmax rounded to bfloat16 and float32 sums.
    """

    def __init__(self, transfer: Transfer, narrow: bool) -> None:
        self._transfer = transfer
        self._narrow = narrow

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        narrow = (
            Kernel(
                "attention",
                "bfloat16",
                self.attention_bfloat16,
                self.accepts_bfloat16,
                rounding=bfloat16_for_bfloat16,
            ),
            Kernel(
                "latent_attention",
                "bfloat16",
                self.latent_attention_bfloat16,
                self.accepts_latent_bfloat16,
                rounding=bfloat16_for_bfloat16,
            ),
        )
        return (
            *(narrow if self._narrow else ()),
            Kernel("stream_write", "scattered", self.stream_write, _pages_fit_values),
            Kernel("attention", "gathered", self.attention, _pages_fit),
            Kernel("attention_with_sinks", "gathered", self.attention_with_sinks, _pages_fit),
            Kernel("latent_attention", "gathered", self.latent_attention, _latent_pages_fit),
        )

    def stream_write(self, pages: torch.Tensor, values: torch.Tensor, rows: PagedRows) -> None:
        slots = write_slots(rows, self._transfer)
        pages.flatten(0, 1).index_copy_(0, slots, values.to(pages.dtype))

    def accepts_bfloat16(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: PagedRows,
        *rest: object,
    ) -> bool:
        narrow = keys.dtype == values.dtype == torch.bfloat16
        return narrow and _pages_fit(queries, keys, values, rows)

    def attention_bfloat16(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> torch.Tensor:
        softmax = Softmax(scale, soft_cap, narrow=True)
        return self._attend(queries, keys, values, rows, window, softmax)

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> torch.Tensor:
        return self._attend(queries, keys, values, rows, window, Softmax(scale, soft_cap))

    def attention_with_sinks(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: PagedRows,
        scale: float,
        window: int | None,
        sinks: torch.Tensor,
    ) -> torch.Tensor:
        return self._attend(queries, keys, values, rows, window, Softmax(scale, sinks=sinks))

    def accepts_latent_bfloat16(
        self,
        queries: torch.Tensor,
        entries: torch.Tensor,
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> bool:
        return entries.dtype == torch.bfloat16 and _latent_pages_fit(
            queries, entries, value_size, rows, scale
        )

    def latent_attention_bfloat16(
        self,
        queries: torch.Tensor,
        entries: torch.Tensor,
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> torch.Tensor:
        shared = entries.unsqueeze(2)
        softmax = Softmax(scale, narrow=True)
        return self._attend(queries, shared, None, rows, None, softmax, value_size)

    def latent_attention(
        self,
        queries: torch.Tensor,
        entries: torch.Tensor,
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> torch.Tensor:
        shared = entries.unsqueeze(2)
        return self._attend(queries, shared, None, rows, None, Softmax(scale), value_size)

    def _attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor | None,
        rows: PagedRows,
        window: int | None,
        softmax: Softmax,
        value_size: int = 0,
    ) -> torch.Tensor:
        """Attention of all rows; without `values` they are the first `value_size` of the keys."""
        count, heads, _ = queries.shape
        size = value_size if values is None else values.shape[3]
        out = torch.empty((count, heads, size), dtype=torch.float32, device=queries.device)
        for reading in readings(rows, window, heads, self._transfer):
            key = gather(keys, reading)
            value = key[:, :, :size] if values is None else gather(values, reading)
            query = queries.index_select(0, reading.rows)
            mixed = mix(query, key, value, reading.hidden, softmax)
            out.index_copy_(0, reading.rows, mixed)
        return out


def gather(pages: torch.Tensor, reading: Reading) -> torch.Tensor:
    """[pieces * key-value heads, seen, size]: what the pieces see of a stream."""
    _, _, heads, size = pages.shape
    pieces, seen = reading.slots.shape
    slots = reading.slots
    if heads > 1:
        head = torch.arange(heads, device=slots.device)[:, None]
        slots = slots[:, None] * heads + head
    found = pages.reshape(-1, size).index_select(0, slots.reshape(-1))
    return found.reshape(pieces * heads, seen, size)


def mix(
    queries: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    softmax: Softmax,
) -> torch.Tensor:
    """float32 [pieces * count, heads, value size] of these rows' queries, [.., heads, size].

    Args:
        key, value: [pieces * key-value heads, seen, size or value size].
        hidden: bool [pieces, count, seen]; what a row must not see.
    """
    pieces, count, seen = hidden.shape
    _, heads, size = queries.shape
    shared = len(key) // pieces
    group = heads // shared
    # Query heads that share a key head stand below one another, as rows of one product.
    query = queries.reshape(pieces, count, shared, group, size).permute(0, 2, 3, 1, 4)
    query = query.reshape(pieces * shared, group * count, size)
    scores = _product(query, key.transpose(1, 2), softmax.narrow)
    scores = scores.reshape(pieces, shared, group, count, seen) * softmax.scale
    if softmax.soft_cap is not None:
        scores = softmax.soft_cap * torch.tanh(scores / softmax.soft_cap)
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    weights, total = _weights(scores, softmax)
    mixed = _product(weights.reshape(pieces * shared, group * count, seen), value, softmax.narrow)
    mixed = mixed.reshape(pieces, shared, group, count, -1) / total
    return mixed.permute(0, 3, 1, 2, 4).reshape(pieces * count, heads, -1)


def _weights(scores: torch.Tensor, softmax: Softmax) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [..., seen] that are not divided yet, and what by, [..., 1]."""
    if softmax.narrow:
        scores = scores * _LOG2_E
        weights = torch.exp2(scores - scores.amax(-1, keepdim=True).ceil())
        weights = weights.bfloat16().float()
        return weights, weights.sum(-1, keepdim=True)
    most = scores.amax(-1, keepdim=True)
    if softmax.sinks is None:
        weights = torch.exp(scores - most)
        return weights, weights.sum(-1, keepdim=True)
    _, shared, group, _, _ = scores.shape
    sinks = softmax.sinks.reshape(shared, group, 1, 1)
    most = torch.maximum(most, sinks)
    weights = torch.exp(scores - most)
    return weights, weights.sum(-1, keepdim=True) + torch.exp(sinks - most)


def _product(left: torch.Tensor, right: torch.Tensor, narrow: bool) -> torch.Tensor:
    """float32 [n, a, c] of [n, a, b] and [n, b, c]."""
    if narrow:
        return torch.bmm(left.bfloat16(), right, out_dtype=torch.float32)
    return torch.bmm(left, right.float())


def _pages_fit(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: PagedRows,
    *rest: object,
) -> bool:
    return keys.shape[1] == values.shape[1] == rows.page_tokens


def _latent_pages_fit(
    queries: torch.Tensor, entries: torch.Tensor, value_size: int, rows: PagedRows, scale: float
) -> bool:
    return entries.shape[1] == rows.page_tokens


def _pages_fit_values(pages: torch.Tensor, values: torch.Tensor, rows: PagedRows) -> bool:
    return pages.shape[1] == rows.page_tokens
