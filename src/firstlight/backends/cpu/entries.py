"""The cpu backend's kernels of ops on chosen entries of streams, and of sinks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_integers, are_pages, are_rows
from firstlight.backends.cpu.attention import attend
from firstlight.formats.base import Floats
from firstlight.ops.attention import state_format
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16

Integers = NDArray[np.int32]

# Of selected entries that are put side by side at a time.
_GATHERED_BYTES = 1 << 23


class EntryKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Each computes a row by itself.

    Args:
        native: the extension's kernels.
        exact: round neither queries nor the softmax's weights.
    """

    def __init__(self, native: _native.Kernels, exact: bool = False) -> None:
        self._native = native
        self._bfloat16 = native.multiplies_bfloat16 and not exact

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        rounding = Kernel(
            "selected_latent_attention",
            "bfloat16",
            self.selected_latent_attention_bfloat16,
            self.accepts_selected_latent_attention_bfloat16,
            rounding=bfloat16_for_bfloat16,
        )
        return (
            *((rounding,) if self._bfloat16 else ()),
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

    def accepts_selected_latent_attention_bfloat16(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        selected: Integers,
        scale: float,
    ) -> bool:
        return (
            state_format(entries, entries).name == "bf16"
            and entries.shape[2] % 2 == 0
            and self.accepts_selected_latent_attention(
                queries, entries, value_size, rows, selected, scale
            )
        )

    def selected_latent_attention_bfloat16(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        selected: Integers,
        scale: float,
    ) -> Floats:
        """With queries and the softmax's weights rounded to bfloat16, as the entries are.

        What each row selected is put side by side, as a sequence of its own, some rows at a time.
        """
        count, most = selected.shape
        size = entries.shape[2]
        out = np.empty((*queries.shape[:2], value_size), np.float32)
        slots = _slots(rows, selected)
        words = entries.view(np.float32).reshape(-1, size // 2)
        step = max(1, _GATHERED_BYTES // max(1, 2 * most * size))
        for start in range(0, count, step):
            stop = min(start + step, count)
            gathered = np.empty(((stop - start) * most, size // 2), np.float32)
            self._native.take_rows(words, slots[start:stop].reshape(-1), gathered)
            pages = gathered.view(np.uint16).reshape(stop - start, most, 1, size)
            each = np.arange(stop - start + 1, dtype=np.int32)
            last = np.count_nonzero(selected[start:stop] >= 0, axis=1) - 1
            alone = PagedRows(each, last.astype(np.int32), each[:-1, None].copy(), most)
            found = attend(
                self._native,
                queries[start:stop],
                pages,
                pages,
                alone,
                scale,
                round_to_bfloat16=True,
            )
            out[start:stop] = found[..., :value_size]
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


def _slots(rows: PagedRows, selected: Integers) -> Integers:
    """Where selected positions lie, among the slots of all pages; any slot for those of -1.

    Raises:
        IndexError: a sequence has no page for a position.
    """
    slots = rows.slots(rows.row_sequences()[:, None], np.maximum(selected, 0))
    if ((slots < 0) & (selected >= 0)).any():
        raise IndexError("a position lies in a page that the sequence lacks")
    narrow: Integers = np.maximum(slots, 0).astype(np.int32)
    return narrow


def _stream(pages: NDArray[Any], rows: PagedRows) -> _native.PagedStream:
    return _native.PagedStream(
        pages, rows.row_starts, rows.positions, rows.page_table, rows.page_tokens
    )
