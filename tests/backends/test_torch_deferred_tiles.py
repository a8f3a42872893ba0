"""Tiles of Triton's attention for steps that are recorded are those of any other step."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.ops.paging import PagedRows

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("window", [None, 1, 300])
@pytest.mark.parametrize(("group", "size"), [(1, 16), (4, 16), (40, 16), (7, 2)])
def test_tiles_of_positions_that_are_not_known_yet(
    window: int | None, group: int, size: int
) -> None:
    from firstlight.backends.torch.paging import page_table
    from firstlight.backends.torch.transfer import Transfer
    from firstlight.backends.torch.triton.query_tiles import split_tiles, whole_tiles
    from tests.support.deferred_rows import deferred

    known = _known()
    later = deferred(known, 0)
    transfer = Transfer(torch.device("cpu"))
    expected = split_tiles(known, window, group, size, transfer)
    found = split_tiles(later, window, group, size, transfer)
    assert expected is not None and found is not None
    assert torch.equal(found.numbers, expected.numbers)
    assert torch.equal(found.rows, expected.rows)
    assert found.numbers.dtype == found.rows.dtype == torch.int32
    # Parts for all that the page table has room for: those too many are empty.
    assert found.parts >= expected.parts
    assert torch.equal(page_table(later, transfer), page_table(known, transfer))
    assert whole_tiles(later, group, size, transfer) is None


@pytest.mark.parametrize("beyond", [100, 2000])
def test_rows_of_positions_that_are_not_known_yet(beyond: int) -> None:
    from firstlight.backends.torch.transfer import Transfer
    from firstlight.backends.torch.triton.row_forms import row_places, rows_beyond, rows_of_form
    from tests.support.deferred_rows import deferred

    known = _known()
    later = deferred(known, 0)
    transfer = Transfer(torch.device("cpu"))
    assert torch.equal(row_places(later, transfer), row_places(known, transfer))
    expected, found = (rows_of_form(rows, True, transfer) for rows in (known, later))
    assert expected is not None and found is not None
    assert torch.equal(found.numbers, expected.numbers)
    assert found.numbers.dtype == expected.numbers.dtype == torch.int32
    assert expected.last == 1000 and found.last == 20 * 64 - 1
    assert rows_of_form(later, False, transfer) is None
    # Of rows that see too little the choice is not looked at.
    fewer, more = (rows_beyond(rows, 4, beyond, transfer) for rows in (known, later))
    if beyond == 100:
        assert fewer is not None and more is not None
        assert fewer[1].tolist() == [1, 4, 5] and more[1].tolist() == list(range(6))
    else:
        assert fewer is None and more is None


def _known() -> PagedRows:
    positions = np.array([7, 500, 7, 0, 1000, 993], np.int32)
    table = np.arange(6 * 20, dtype=np.int32).reshape(6, 20)
    return PagedRows(np.arange(7, dtype=np.int32), positions, table, 64)
