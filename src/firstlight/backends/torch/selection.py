"""The choice of entries on the device, and latent attention over chosen positions."""

from __future__ import annotations

import math

import torch

from firstlight.backends.base import Kernel
from firstlight.backends.torch.attention import Softmax, mix
from firstlight.backends.torch.deferred_paging import is_deferred
from firstlight.backends.torch.runs import RunReading, chosen_readings, run_readings, runs_seen
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows
from firstlight.ops.select_entries import Integers


def entries_at(pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[*slots' shape, *entry] of a stream's entries, counted through all pages; as stored."""
    found = pages.flatten(0, 1).index_select(0, slots.reshape(-1))
    return found.reshape(*slots.shape, *pages.shape[2:])


def choice_on_device(chosen: torch.Tensor | Integers, transfer: Transfer) -> torch.Tensor:
    """A choice as `select_entries` gives it, made there or on the host."""
    return chosen if isinstance(chosen, torch.Tensor) else transfer.upload(chosen)


class SelectionKernels:
    """The kernels of one device."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("select_entries", "counted", self.select_entries, _keys_fit),
            Kernel(
                "selected_latent_attention", "gathered", self.selected_latent_attention, _pages_fit
            ),
        )

    def select_entries(
        self,
        queries: torch.Tensor,
        weights: torch.Tensor,
        keys: torch.Tensor,
        rows: PagedRows,
        stride: int,
        top_k: int,
    ) -> torch.Tensor:
        """int32 on the device; the ops that take a choice take it from there."""
        device, heads = queries.device, queries.shape[1]
        seen = runs_seen(rows, stride, self._transfer)
        each = torch.arange(top_k, dtype=torch.int32, device=device)
        out = torch.where(each < seen[:, None], each, -1)
        # Who sees no more than that has its choice already.
        for reading in run_readings(rows, stride, heads, self._transfer, beyond=top_k):
            query = queries.index_select(0, reading.rows)
            weight = weights.index_select(0, reading.rows)
            scores = _index_scores(query, weight, entries_at(keys, reading.far), reading)
            chosen = largest(scores, top_k)
            if is_deferred(rows):
                beyond = seen.index_select(0, reading.rows)[:, None] > top_k
                chosen = torch.where(beyond, chosen, out.index_select(0, reading.rows))
            out.index_copy_(0, reading.rows, chosen)
        return out

    def selected_latent_attention(
        self,
        queries: torch.Tensor,
        entries: torch.Tensor,
        value_size: int,
        rows: PagedRows,
        selected: torch.Tensor | Integers,
        scale: float,
    ) -> torch.Tensor:
        count, heads, size = queries.shape
        chosen = choice_on_device(selected, self._transfer)
        out = torch.empty((count, heads, value_size), dtype=torch.float32, device=queries.device)
        width = max(heads, size)
        for reading in chosen_readings(rows, 1, chosen.shape[1], width, self._transfer, None):
            slots, none = reading.far(chosen)
            found = entries_at(entries, slots)
            query = queries.index_select(0, reading.rows)
            mixed = mix(query, found, found[:, :, :value_size], none[:, None], Softmax(scale))
            out.index_copy_(0, reading.rows, mixed)
        return out


def _index_scores(
    queries: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor, reading: RunReading
) -> torch.Tensor:
    """float32 [pieces * count, runs] of these rows; minus infinity for runs that are hidden."""
    pieces, runs, size = keys.shape
    count, heads = reading.count, queries.shape[1]
    query = queries.reshape(pieces, count * heads, size)
    each = torch.bmm(query, keys.float().transpose(1, 2)).relu_()
    weight = weights.reshape(pieces * count, 1, heads)
    scores = torch.bmm(weight, each.reshape(pieces * count, heads, runs))
    scores = scores.reshape(pieces, count, runs).masked_fill(reading.hidden, -math.inf)
    return scores.reshape(pieces * count, runs)


def largest(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """int32 [n, top_k]: the places of each row's largest scores, rising; of equal ones the lowest.

    Sorting is not needed: the smallest that is chosen says who is, and counting says where to.
    """
    border = scores.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = scores > border
    equal = scores == border
    left = top_k - above.sum(1, keepdim=True)
    taken = above | (equal & (equal.cumsum(1) <= left))
    # Whoever is not taken goes to one place behind the last.
    places = torch.where(taken, taken.cumsum(1) - 1, top_k)
    numbers = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    out = torch.full((len(scores), top_k + 1), -1, dtype=torch.int32, device=scores.device)
    return out.scatter_(1, places, numbers.expand(len(scores), -1))[:, :top_k]


def _keys_fit(
    queries: torch.Tensor,
    weights: torch.Tensor,
    keys: torch.Tensor,
    rows: PagedRows,
    stride: int,
    top_k: int,
) -> bool:
    return keys.shape[1] * stride == rows.page_tokens


def _pages_fit(
    queries: torch.Tensor,
    entries: torch.Tensor,
    value_size: int,
    rows: PagedRows,
    selected: torch.Tensor | Integers,
    scale: float,
) -> bool:
    return entries.shape[1] == rows.page_tokens
