"""Attention over compressed entries on the device: making them, and attending to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from firstlight.backends.base import Kernel
from firstlight.backends.torch.attention import Softmax, mix
from firstlight.backends.torch.deferred_paging import is_deferred, row_positions
from firstlight.backends.torch.paging import kept, own_slots
from firstlight.backends.torch.runs import Near, chosen_readings, run_readings
from firstlight.backends.torch.selection import choice_on_device, entries_at
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.compressed_attention import Integers
from firstlight.ops.paging import PagedRows


class CompressedKernels:
    """The kernels of one device."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("pool_runs", "gathered", self.pool_runs, _runs_fit),
            Kernel("compressed_attention", "gathered", self.compressed_attention, _pages_fit),
        )

    def pool_runs(
        self,
        entries: torch.Tensor,
        rows: PagedRows,
        stride: int,
        before: torch.Tensor | None = None,
        before_rows: PagedRows | None = None,
    ) -> torch.Tensor:
        slots, _ = self._run_slots(rows, stride, 0)
        values, gates = entries_at(entries, slots).float().unbind(2)
        if before is not None and before_rows is not None:
            slots, none = self._run_slots(before_rows, stride, stride)
            earlier, opened = entries_at(before, slots).float().unbind(2)
            values = torch.cat((earlier, values), 1)
            gates = torch.cat((opened.masked_fill(none[:, None, None], -math.inf), gates), 1)
        return (torch.softmax(gates, 1) * values).sum(1)

    def _run_slots(
        self, rows: PagedRows, stride: int, back: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each run that a row completes: (int64 [runs, stride], the entries of its positions, or
        of those `back` before them, counted through all pages; bool [runs], whether these would lie
        before the first position: then its own are named)."""

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            if is_deferred(rows):
                return self._deferred_run_slots(rows, stride, back)
            runs = rows.runs(stride)
            first = runs.positions.astype(np.int64) * stride
            none = first < back
            places = (first - np.where(none, 0, back))[:, None] + np.arange(stride)
            slots = rows.slots(runs.row_sequences()[:, None], places)
            return self._transfer.upload(slots), self._transfer.upload(none)

        return kept(rows, ("run slots", self._transfer.device, stride, back), make)

    def _deferred_run_slots(
        self, rows: PagedRows, stride: int, back: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the runs that rows are in, where positions are on the device only."""
        last = row_positions(rows, self._transfer)[:, None]
        first = last - last % stride
        none = first < back
        places = torch.where(none, first, first - back) + torch.arange(stride, device=last.device)
        return own_slots(rows, places, self._transfer), none[:, 0]

    def compressed_attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        rows: PagedRows,
        window: int,
        entries: torch.Tensor,
        entry_rows: PagedRows,
        stride: int,
        chosen: torch.Tensor | Integers | None,
        scale: float,
        sinks: torch.Tensor,
    ) -> torch.Tensor:
        softmax = Softmax(scale, sinks=sinks)
        seen = (keys.squeeze(2), entries), Near(rows, window), entry_rows, stride
        parts = self._all_runs(*seen, queries) if chosen is None else self._chosen(*seen, chosen)
        out = torch.empty_like(queries)
        for part in parts:
            query = queries.index_select(0, part.rows)
            out.index_copy_(0, part.rows, mix(query, part.seen, part.seen, part.hidden, softmax))
        return out

    def _all_runs(
        self,
        streams: tuple[torch.Tensor, torch.Tensor],
        near: Near,
        entry_rows: PagedRows,
        stride: int,
        queries: torch.Tensor,
    ) -> Iterator[_Part]:
        heads = queries.shape[1]
        for reading in run_readings(entry_rows, stride, heads, self._transfer, near):
            seen = _joined(streams, reading.near, reading.far)
            if is_deferred(entry_rows):
                seen = _without(seen, reading.hidden)
            yield _Part(reading.rows, seen, reading.hidden)

    def _chosen(
        self,
        streams: tuple[torch.Tensor, torch.Tensor],
        near: Near,
        entry_rows: PagedRows,
        stride: int,
        chosen: torch.Tensor | Integers,
    ) -> Iterator[_Part]:
        choice = choice_on_device(chosen, self._transfer)
        _, top_k = choice.shape
        width = streams[1].shape[-1]
        for reading in chosen_readings(entry_rows, stride, top_k, width, self._transfer, near):
            far, none = reading.far(choice)
            hidden = torch.cat((reading.hidden, none), 1)[:, None]
            seen = _joined(streams, reading.near, far)
            if is_deferred(entry_rows):
                seen = _without(seen, hidden)
            yield _Part(reading.rows, seen, hidden)


@dataclass(frozen=True, eq=False)
class _Part:
    """What is computed together.

    Attributes:
        rows: int64 [pieces * count]; which rows of the batch these are.
        seen: [pieces, positions + entries, size]; keys, which are the values too.
        hidden: bool [pieces, count, positions + entries]; what a row must not see.
    """

    rows: torch.Tensor
    seen: torch.Tensor
    hidden: torch.Tensor


def _joined(
    streams: tuple[torch.Tensor, torch.Tensor], near: torch.Tensor, far: torch.Tensor
) -> torch.Tensor:
    """Positions near by of one stream, and entries of the other, in one row."""
    keys, entries = streams
    return torch.cat((entries_at(keys, near), entries_at(entries, far)), 1)


def _without(seen: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What one row each sees, zero where it is hidden: while runs of a row may all be incomplete,
    what stands for them is no entry, and need be no number."""
    return seen.masked_fill(hidden[:, 0, :, None], 0.0)


def _runs_fit(
    entries: torch.Tensor,
    rows: PagedRows,
    stride: int,
    before: torch.Tensor | None = None,
    before_rows: PagedRows | None = None,
) -> bool:
    fits = entries.shape[1] == rows.page_tokens
    if before is None or before_rows is None:
        return fits
    return fits and before.shape[1] == before_rows.page_tokens


def _pages_fit(
    queries: torch.Tensor,
    keys: torch.Tensor,
    rows: PagedRows,
    window: int,
    entries: torch.Tensor,
    entry_rows: PagedRows,
    stride: int,
    *rest: object,
) -> bool:
    near = keys.shape[1] == rows.page_tokens
    return near and entries.shape[1] * stride == entry_rows.page_tokens
