"""Rows of a step that is being recorded: arrays whose values the host cannot look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from firstlight.backends.torch.deferred import Deferred
from firstlight.ops.paging import PagedRows


def deferred(rows: PagedRows, more_pages: int = 0) -> PagedRows:
    """The same rows, whose page table has room for so many pages more."""
    table = np.pad(rows.page_table, ((0, 0), (0, more_pages)), constant_values=-1)
    positions: Any = Deferred(torch.from_numpy(rows.positions.copy()), rows.positions.dtype)
    pages: Any = Deferred(torch.from_numpy(table), table.dtype)
    return PagedRows(rows.row_starts, positions, pages, rows.page_tokens)
