"""DeepSeek-V4's ops against what they mean, written down another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from firstlight.ops.compressed_attention import compressed_attention, pool_runs
from firstlight.ops.hyper_connections import (
    ConnectionNumbers,
    collapse_streams,
    connection_weights,
    expand_streams,
)
from firstlight.ops.paging import PagedRows
from firstlight.ops.select_entries import select_entries


def _rows(first: int, count: int, page_tokens: int = 8, pages: int = 8) -> PagedRows:
    """Rows of one sequence whose pages lie in order."""
    return PagedRows(
        np.array([0, count], np.int32),
        np.arange(first, first + count, dtype=np.int32),
        np.arange(pages, dtype=np.int32)[None],
        page_tokens,
    )


def test_runs_that_rows_complete() -> None:
    rows = PagedRows(
        np.array([0, 5, 5, 6, 9], np.int32),
        np.array([2, 3, 4, 5, 6, 9, 10, 11, 12], np.int32),
        np.arange(12, dtype=np.int32).reshape(4, 3),
        8,
    )
    runs = rows.runs(4)
    assert runs.row_starts.tolist() == [0, 1, 1, 1, 2]
    assert runs.positions.tolist() == [0, 2]
    assert (runs.page_tokens, runs.page_table is rows.page_table) == (2, True)
    assert rows.completing(4).tolist() == [1, 7]
    assert rows.runs(16).positions.tolist() == []


@pytest.mark.parametrize("overlapping", [False, True])
def test_an_entry_is_a_softmax_over_its_run_and_the_one_before(overlapping: bool) -> None:
    generator = np.random.default_rng(1)
    own, before = generator.standard_normal((2, 64, 2, 6)).astype(np.float32)
    more = (before.reshape(8, 8, 2, 6), _rows(0, 12)) if overlapping else (None, None)
    found = pool_runs(own.reshape(8, 8, 2, 6), _rows(0, 12), 4, *more)
    assert found.shape == (3, 6)
    for run in range(3):
        parts = own[4 * run : 4 * run + 4]
        if overlapping and run:
            parts = np.concatenate((before[4 * run - 4 : 4 * run], parts))
        weights = torch.softmax(torch.from_numpy(parts[:, 1]), dim=0).numpy()
        np.testing.assert_allclose(found[run], (weights * parts[:, 0]).sum(0), rtol=2e-6)


def test_the_best_runs_are_chosen_and_of_equal_ones_the_first() -> None:
    keys = np.zeros((4, 2, 3), np.float32)
    keys.reshape(8, 3)[:, 0] = [1, 5, 5, 2, 5, 9, 0, 0]
    queries = np.ones((1, 2, 3), np.float32)
    rows = _rows(21, 1, pages=4)  # five runs of 4 are complete
    for weights, expected in (
        ([1, 1], [1, 2, -2]),
        ([1, -1], [0, 1, -2]),
        ([-1, -1], [0, 3, -2]),
    ):
        found = select_entries(queries, np.array([weights], np.float32), keys, rows, 4, 2)
        assert found.tolist() == [expected[:2]]
    found = select_entries(-queries, np.ones((1, 2), np.float32), keys, rows, 4, 2)
    assert found.tolist() == [[0, 1]]  # no product is above zero
    found = select_entries(queries, np.ones((1, 2), np.float32), keys, rows, 4, 7)
    assert found.tolist() == [[0, 1, 2, 3, 4, -1, -1]]


def test_one_softmax_over_window_and_entries() -> None:
    generator = np.random.default_rng(2)
    keys = generator.standard_normal((8, 8, 1, 6)).astype(np.float32)
    entries = generator.standard_normal((8, 2, 6)).astype(np.float32)
    queries = generator.standard_normal((2, 3, 6)).astype(np.float32)
    sinks = generator.standard_normal(3).astype(np.float32)
    rows = _rows(30, 2)
    chosen = np.array([[0, 5, -1], [1, 2, 7]], np.int32)
    found = compressed_attention(queries, keys, rows, 5, entries, rows, 4, chosen, 0.3, sinks)
    everything = compressed_attention(queries, keys, rows, 5, entries, rows, 4, None, 0.3, sinks)
    for row, position in enumerate((30, 31)):
        near = keys.reshape(64, 6)[position - 4 : position + 1]
        picked = entries.reshape(16, 6)[chosen[row][chosen[row] >= 0]]
        complete = entries.reshape(16, 6)[: (position + 1) // 4]
        for far, result in ((picked, found), (complete, everything)):
            seen = torch.from_numpy(np.concatenate((near, far)))
            scores = 0.3 * torch.from_numpy(queries[row]) @ seen.T
            weights = torch.softmax(torch.cat((scores, torch.from_numpy(sinks)[:, None]), 1), 1)
            np.testing.assert_allclose(result[row], weights[:, :-1] @ seen, atol=2e-6)


def test_streams_neither_grow_nor_shrink() -> None:
    """Rows and columns of the mixing matrix sum to one, after enough iterations."""
    generator = np.random.default_rng(3)
    numbers = ConnectionNumbers(4, 20, 1e-6)
    logits = generator.standard_normal((50, 24)).astype(np.float32)
    scale = np.ones(3, np.float32)
    weights = connection_weights(logits, np.zeros(24, np.float32), scale, numbers)
    mix = weights[:, 8:].reshape(-1, 4, 4)
    np.testing.assert_allclose(mix.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(mix.sum(2), 1, atol=2e-2)
    assert weights[:, :4].min() > 0
    assert weights[:, 4:8].max() < 2
    x = generator.standard_normal((50, 4, 7)).astype(np.float32)
    unchanged = expand_streams(x, np.zeros((50, 7), np.float32), weights)
    np.testing.assert_allclose(unchanged.sum(1), x.sum(1), atol=0.1)


def test_weights_of_zero_logits_are_even() -> None:
    numbers = ConnectionNumbers(2, 3, 0.0)
    zeros = np.zeros((1, 8), np.float32)
    weights = connection_weights(zeros, zeros[0], np.ones(3, np.float32), numbers)
    np.testing.assert_allclose(weights[0], [0.5, 0.5, 1, 1, *[0.5] * 4])
    x = np.array([[[1, 2], [3, 6]]], np.float32)
    np.testing.assert_allclose(collapse_streams(x, weights), [[2, 4]])
    y = np.array([[10, 20]], np.float32)
    np.testing.assert_allclose(expand_streams(x, y, weights), [[[12, 24], [12, 24]]])


def test_the_direction_in_which_streams_are_mixed() -> None:
    """mix_jk goes from stream j to stream k."""
    weights = np.array([[0, 0, 1, 10, 0, 1, 0, 0]], np.float32)
    x = np.array([[[3], [7]]], np.float32)
    found = expand_streams(x, np.ones((1, 1), np.float32), weights)
    assert found.tolist() == [[[1], [10 + 3]]]
