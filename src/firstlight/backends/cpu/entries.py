"""The cpu backend's kernels of ops on chosen entries of streams, and of sinks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_integers, are_pages, are_rows
from firstlight.backends.cpu.kernels import attend
from firstlight.formats.base import Floats
from firstlight.ops.paging import PagedRows

Integers = NDArray[np.int32]


class EntryKernels:
    """The kernels of one instruction level, each with the signature of its op.

    None rounds what it multiplies, and each computes a row by itself.

    Args:
        native: the extension's kernels.
    """

    def __init__(self, native: _native.Kernels) -> None:
        self._native = native

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("select_entries", "paged", self.select_entries, self.accepts_select_entries),
            Kernel(
                "selected_latent_attention",
                "listed",
                self.selected_latent_attention,
                self.accepts_selected_latent_attention,
            ),
            Kernel(
                "compressed_attention",
                "listed",
                self.compressed_attention,
                self.accepts_compressed_attention,
            ),
            Kernel("pool_runs", "paged", self.pool_runs, self.accepts_pool_runs),
            Kernel(
                "attention_with_sinks",
                "paged",
                self.attention_with_sinks,
                self.accepts_attention_with_sinks,
            ),
        )

    def accepts_select_entries(
        self,
        queries: Floats,
        weights: Floats,
        keys: NDArray[Any],
        rows: PagedRows,
        stride: int,
        top_k: int,
    ) -> bool:
        return are_floats(queries) and are_floats(weights) and _can_read(keys, rows)

    def select_entries(
        self,
        queries: Floats,
        weights: Floats,
        keys: NDArray[Any],
        rows: PagedRows,
        stride: int,
        top_k: int,
    ) -> Integers:
        out = np.empty((len(queries), top_k), np.int32)
        self._native.select_entries(queries, weights, _stream(keys, rows), stride, top_k, out)
        return out

    def accepts_selected_latent_attention(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        selected: Integers,
        scale: float,
    ) -> bool:
        return are_floats(queries) and are_integers(selected) and _can_read(entries, rows)

    def selected_latent_attention(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        selected: Integers,
        scale: float,
    ) -> Floats:
        out = np.empty((*queries.shape[:2], value_size), np.float32)
        self._native.selected_attention(queries, _stream(entries, rows), selected, scale, out)
        return out

    def accepts_compressed_attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        rows: PagedRows,
        window: int,
        entries: NDArray[Any],
        entry_rows: PagedRows,
        stride: int,
        chosen: Integers | None,
        scale: float,
        sinks: Floats,
    ) -> bool:
        return (
            are_floats(queries)
            and are_floats(sinks)
            and (chosen is None or are_integers(chosen))
            and _can_read(keys, rows)
            and _can_read(entries, entry_rows)
            and keys.dtype == entries.dtype
        )

    def compressed_attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        rows: PagedRows,
        window: int,
        entries: NDArray[Any],
        entry_rows: PagedRows,
        stride: int,
        chosen: Integers | None,
        scale: float,
        sinks: Floats,
    ) -> Floats:
        out = np.empty(queries.shape, np.float32)
        near, far = _stream(keys, rows), _stream(entries, entry_rows)
        self._native.compressed_attention(
            queries, near, window, far, stride, chosen, scale, sinks, out
        )
        return out

    def accepts_pool_runs(
        self,
        entries: NDArray[Any],
        rows: PagedRows,
        stride: int,
        before: NDArray[Any] | None = None,
        before_rows: PagedRows | None = None,
    ) -> bool:
        if not _can_read(entries, rows):
            return False
        if before is None or before_rows is None:
            return before is None and before_rows is None
        return _can_read(before, before_rows) and before.dtype == entries.dtype

    def pool_runs(
        self,
        entries: NDArray[Any],
        rows: PagedRows,
        stride: int,
        before: NDArray[Any] | None = None,
        before_rows: PagedRows | None = None,
    ) -> Floats:
        out = np.empty((len(rows.completing(stride)), entries.shape[-1]), np.float32)
        earlier = None
        if before is not None and before_rows is not None:
            earlier = _stream(before, before_rows)
        self._native.pool_runs(_stream(entries, rows), stride, earlier, out)
        return out

    def accepts_attention_with_sinks(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        sinks: Floats,
    ) -> bool:
        return (
            are_floats(queries)
            and are_floats(sinks)
            and _can_read(keys, rows)
            and are_pages(values)
        )

    def attention_with_sinks(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        sinks: Floats,
    ) -> Floats:
        return attend(
            self._native,
            queries,
            keys,
            values,
            rows,
            scale,
            window,
            round_to_bfloat16=False,
            sinks=sinks,
        )


def _can_read(pages: NDArray[Any], rows: PagedRows) -> bool:
    return are_pages(pages) and are_rows(rows)


def _stream(pages: NDArray[Any], rows: PagedRows) -> _native.PagedStream:
    return _native.PagedStream(
        pages, rows.row_starts, rows.positions, rows.page_table, rows.page_tokens
    )
