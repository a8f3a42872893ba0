"""Which arrays the extension takes: those it can read without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from firstlight.ops.paging import PagedRows

_FLOAT32 = np.dtype(np.float32)
_INT32 = np.dtype(np.int32)
_STREAMS = (_FLOAT32, np.dtype(np.uint16))

NO_WINDOW = 1 << 31
"""Wider than any int32 position."""


def are_floats(array: Any) -> bool:
    """Whether it is a C-contiguous float32 array."""
    return isinstance(array, np.ndarray) and array.dtype == _FLOAT32 and array.flags.c_contiguous


def are_integers(array: Any) -> bool:
    """Whether it is a C-contiguous int32 array."""
    return isinstance(array, np.ndarray) and array.dtype == _INT32 and array.flags.c_contiguous


def are_pages(array: Any) -> bool:
    """Whether it is the pages of a stream as `new_stream` makes them."""
    return isinstance(array, np.ndarray) and array.dtype in _STREAMS and array.flags.c_contiguous


def are_rows(rows: PagedRows) -> bool:
    """Whether all their arrays are as they should be."""
    return (
        are_integers(rows.row_starts)
        and are_integers(rows.positions)
        and are_integers(rows.page_table)
    )
