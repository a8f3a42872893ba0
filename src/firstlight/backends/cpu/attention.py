"""The cpu backend's kernels of paged attention and of writing to streams."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import NO_WINDOW, are_floats, are_pages, are_rows
from firstlight.backends.cpu.tuned_attention import ATTENTION_PARAMETERS, allows_attention
from firstlight.formats.base import Floats
from firstlight.ops.attention import state_format
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16


class AttentionKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Shapes and pages are checked by the extension: ValueError, IndexError or TypeError where they
    are wrong.

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
            "attention",
            "bfloat16",
            self.attention_bfloat16,
            self.accepts_attention_bfloat16,
            rounding=bfloat16_for_bfloat16,
            parameters=ATTENTION_PARAMETERS,
            allows=allows_attention,
        )
        return (
            *((rounding,) if self._bfloat16 else ()),
            Kernel("stream_write", "paged", self.stream_write, self.accepts_stream_write),
            Kernel(
                "attention",
                "paged",
                self.attention,
                self.accepts_attention,
                parameters=ATTENTION_PARAMETERS,
                allows=allows_attention,
            ),
        )

    def accepts_stream_write(self, pages: NDArray[Any], values: Floats, rows: PagedRows) -> bool:
        return are_pages(pages) and are_floats(values) and are_rows(rows)

    def stream_write(self, pages: NDArray[Any], values: Floats, rows: PagedRows) -> None:
        self._native.stream_write(
            pages, values, rows.row_starts, rows.positions, rows.page_table, rows.page_tokens
        )

    def accepts_attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> bool:
        return (
            are_floats(queries)
            and are_pages(keys)
            and are_pages(values)
            and are_rows(rows)
            and (soft_cap is None or soft_cap > 0)
        )

    def attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        **tuning: int,
    ) -> Floats:
        return attend(
            self._native,
            queries,
            keys,
            values,
            rows,
            scale,
            window,
            soft_cap,
            round_to_bfloat16=False,
            sinks=None,
            **tuning,
        )

    def accepts_attention_bfloat16(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> bool:
        return state_format(keys, values).name == "bf16" and self.accepts_attention(
            queries, keys, values, rows, scale, window, soft_cap
        )

    def attention_bfloat16(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        **tuning: int,
    ) -> Floats:
        """With queries and the softmax's weights rounded to bfloat16, as keys and values are."""
        return attend(
            self._native,
            queries,
            keys,
            values,
            rows,
            scale,
            window,
            soft_cap,
            round_to_bfloat16=True,
            sinks=None,
            **tuning,
        )


def attend(
    native: _native.Kernels,
    queries: Floats,
    keys: NDArray[Any],
    values: NDArray[Any],
    rows: PagedRows,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    *,
    round_to_bfloat16: bool,
    sinks: Floats | None = None,
    **tuning: int,
) -> Floats:
    """The extension's paged attention: float32 [rows, heads, value_size].

    `round_to_bfloat16`: queries and the softmax's weights, as keys and values are. `sinks`: as in
    `attention_with_sinks`. `tuning`: ATTENTION_PARAMETERS, which change how long it takes, and no
    bit.
    """
    out = np.empty((*queries.shape[:2], values.shape[-1]), np.float32)
    native.attention(
        queries,
        keys,
        values,
        rows.row_starts,
        rows.positions,
        rows.page_table,
        rows.page_tokens,
        scale,
        NO_WINDOW if window is None else window,
        soft_cap or 0.0,
        out,
        round_to_bfloat16=round_to_bfloat16,
        sinks=sinks,
        **tuning,
    )
    return out
