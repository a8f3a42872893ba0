"""The choice of positions: its rule for equal scores, and that company does not change it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.ops.contract import get_op
from firstlight.ops.paging import PagedRows
from firstlight.ops.select_entries import select_entries
from firstlight.ops.selected_latent_attention import selected_latent_attention
from firstlight.verify.cases import StreamArgument, cases_of
from firstlight.verify.cases.base import Case

CASES = cases_of("select_entries")


def _rows(start: int, count: int, page_tokens: int = 8) -> PagedRows:
    pages = -(-(start + count) // page_tokens)
    return PagedRows(
        np.array([0, count], np.int32),
        np.arange(start, start + count, dtype=np.int32),
        np.arange(pages, dtype=np.int32)[None],
        page_tokens,
    )


def _unwrapped(case: Case) -> list[object]:
    return [a.pages if isinstance(a, StreamArgument) else a for a in case.arguments()]


def test_equal_scores_go_to_the_lower_position() -> None:
    keys = np.zeros((5, 8, 3), np.float32)
    keys[3, 2] = 1.0
    queries, weights = np.ones((1, 2, 3), np.float32), np.ones((1, 2), np.float32)
    found = select_entries(queries, weights, keys, _rows(39, 1), 1, 4)
    assert found.tolist() == [[0, 1, 2, 26]]
    less = select_entries(queries, -weights, keys, _rows(39, 1), 1, 4)
    assert less.tolist() == [[0, 1, 2, 3]]


def test_a_row_that_sees_no_more_takes_all() -> None:
    keys = np.ones((1, 8, 3), np.float32)
    queries, weights = np.ones((3, 2, 3), np.float32), np.ones((3, 2), np.float32)
    found = select_entries(queries, weights, keys, _rows(2, 3), 1, 4)
    assert found.tolist() == [[0, 1, 2, -1], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_row_alone_chooses_what_it_chooses_in_company(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    queries, weights, keys, rows, stride, top_k = _unwrapped(case)
    assert isinstance(rows, PagedRows)
    assert isinstance(queries, np.ndarray)
    assert isinstance(weights, np.ndarray)
    together = select_entries(queries, weights, keys, rows, stride, top_k)  # type: ignore[arg-type]
    for row, sequence in enumerate(rows.row_sequences()):
        alone = PagedRows(
            np.array([0, 1], np.int32),
            rows.positions[row : row + 1],
            rows.page_table[sequence : sequence + 1],
            rows.page_tokens,
        )
        here = slice(row, row + 1)
        found = select_entries(queries[here], weights[here], keys, alone, stride, top_k)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found[0], together[row])


def test_scores_are_those_of_the_equation() -> None:
    """Against PyTorch's, whose choice among equal ones is its own: so their values are compared."""
    generator = np.random.default_rng(5)
    queries = generator.standard_normal((6, 4, 16), np.float32)
    weights = generator.standard_normal((6, 4), np.float32)
    keys = generator.standard_normal((10, 8, 16), np.float32)
    found = select_entries(queries, weights, keys, _rows(70, 6), 1, 20)
    products = torch.relu(torch.einsum("rhd,td->rht", torch.tensor(queries),
                                       torch.tensor(keys.reshape(80, 16))))  # fmt: skip
    scores = torch.einsum("rh,rht->rt", torch.tensor(weights), products)
    for row in range(6):
        assert len(set(found[row].tolist())) == 20
        chosen = scores[row, found[row]].sort(descending=True).values
        expected = scores[row, : 71 + row].topk(20).values
        torch.testing.assert_close(chosen, expected, rtol=0, atol=1e-5)


def test_over_all_positions_it_is_latent_attention() -> None:
    generator = np.random.default_rng(6)
    queries = generator.standard_normal((5, 3, 12), np.float32)
    entries = generator.standard_normal((4, 8, 12), np.float32)
    rows = _rows(20, 5)
    every = np.tile(np.arange(25, dtype=np.int32), (5, 1))
    every[every > rows.positions[:, None]] = -1
    found = selected_latent_attention(queries, entries, 9, rows, every, 0.3)
    expected = get_op("latent_attention").definition(queries, entries, 9, rows, 0.3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_costs_count_what_is_seen() -> None:
    """One row at position 999 with 4 heads of 8 and 100 of them: 1,000 keys once, 100 entries."""
    queries, weights = np.ones((1, 4, 8), np.float32), np.ones((1, 4), np.float32)
    keys, rows = np.ones((16, 64, 8), np.float32), _rows(999, 1, 64)
    cost = get_op("select_entries").cost(queries, weights, keys, rows, 1, 100)
    assert cost.bytes_moved == 4 * (1000 * 8 + 4 * 8 + 4 + 100)
    assert cost.operations == 1000 * 4 * (2 * 8 + 3)
    selected = np.zeros((1, 100), np.int32)
    attention = get_op("selected_latent_attention")
    cost = attention.cost(queries, keys, 6, rows, selected, 1.0)
    assert cost.bytes_moved == 4 * (100 * 8 + 4 * (8 + 6) + 100)
    assert cost.operations == 100 * 4 * 2 * (8 + 6)
