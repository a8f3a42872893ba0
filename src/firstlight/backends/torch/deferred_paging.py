"""What paging.py tells of a step's rows, for steps that are recorded: it follows on the device.

Positions and page tables are not known on the host then (deferred.py). Each sequence has one row.
"""

from __future__ import annotations

import numpy as np
import torch

from firstlight.backends.torch.deferred import Deferred, NotReplayable
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows


def is_deferred(rows: PagedRows) -> bool:
    """Whether the rows are of a step that is being recorded."""
    return isinstance(rows.positions, Deferred)


def row_positions(rows: PagedRows, transfer: Transfer) -> torch.Tensor:
    """int64 [rows]; row r is sequence r's.

    Raises:
        NotReplayable: sequences have several rows, or none.
    """
    starts = rows.row_starts
    if isinstance(starts, Deferred) or not np.array_equal(starts, np.arange(len(starts))):
        raise NotReplayable("sequences have other numbers of rows in every step")
    return transfer.upload(rows.positions).long()


def most_seen(rows: PagedRows, window: int | None) -> int:
    """Positions that a row may see, with those that its page table has no page for yet."""
    room = rows.most_positions
    return room if window is None else min(room, window)


def seen_positions(
    rows: PagedRows, window: int | None, count: int, transfer: Transfer
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` positions from the first on that each row sees: int64 and bool, both
    [rows, count]; the second says which lie behind the row, and stand for its own."""
    last = row_positions(rows, transfer)[:, None]
    first = torch.zeros_like(last) if window is None else (last - (window - 1)).clamp(min=0)
    position = first + torch.arange(count, device=transfer.device)
    return torch.minimum(position, last), position > last
