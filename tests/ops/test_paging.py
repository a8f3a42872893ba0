"""Where rows find their entries."""

from __future__ import annotations

import numpy as np

from firstlight.ops.paging import PagedRows


def test_slots_are_counted_through_all_pages() -> None:
    table = np.array([[2, 0, -1], [1, -1, 3]], np.int32)
    rows = PagedRows(np.array([0, 1, 3], np.int32), np.array([5, 8, 9], np.int32), table, 4)
    places = np.array([[0, 5, 8], [3, 4, 9]])
    found = rows.slots(np.array([[0], [1]]), places)
    assert found.tolist() == [[8, 1, -4], [7, -4, 13]]
    assert found.dtype == np.int64
    assert rows.slots(rows.row_sequences(), rows.positions).tolist() == [1, 12, 13]
