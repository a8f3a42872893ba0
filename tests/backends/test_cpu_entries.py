"""Ops on chosen entries on the cpu backend: a row's bits do not depend on its batch or on threads,
and wrong arguments are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16
from firstlight.verify.cases.attention import Layout, paged_rows

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
CpuBackend = backend_module.CpuBackend
LEVELS = backend_module.available_levels()

STRIDE, PAGE_TOKENS, HEADS, SIZE, TOP_K, WINDOW = 4, 16, 19, 40, 70, 21
SEQUENCES = ((700, 9), (3, 30), (290, 1))  # what came before, and rows of the batch


class _State:
    """Rows of several sequences, and streams of random entries for them."""

    def __init__(self, dtype: str = "bfloat16") -> None:
        self.generator = np.random.default_rng(11)
        self.dtype = dtype
        self.rows = self.paged()
        self.far_rows = self.paged()
        self.count = len(self.rows.positions)
        self.keys = self.entries((PAGE_TOKENS, 1, SIZE), self.rows)
        self.latents = self.entries((PAGE_TOKENS, SIZE), self.rows)
        self.runs = self.entries((PAGE_TOKENS // STRIDE, SIZE), self.far_rows)
        self.pairs = self.entries((PAGE_TOKENS, 2, SIZE), self.rows)
        self.queries = self.normal(self.count, HEADS, SIZE)
        self.weights = self.normal(self.count, HEADS)
        self.sinks = self.normal(HEADS)

    def normal(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape, dtype=np.float32)

    def paged(self) -> PagedRows:
        return paged_rows(Layout("several", SEQUENCES, PAGE_TOKENS), self.generator)[0]

    def entries(self, shape: tuple[int, ...], rows: PagedRows) -> np.ndarray:
        values = self.normal(int(rows.page_table.max()) + 1, *shape)
        if self.dtype == "float32":
            return values
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    def run(self, backend: Any, chosen_rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every op on some of the rows."""
        part, far = self.rows.part(chosen_rows), self.far_rows.part(chosen_rows)
        queries, weights = self.queries[chosen_rows], self.weights[chosen_rows]
        runs = backend.select_entries(queries, weights, self.runs, far, STRIDE, TOP_K)
        positions = backend.select_entries(queries, weights, self.latents, part, 1, TOP_K)
        near = (queries, self.keys, part, WINDOW, self.runs, far, STRIDE)
        return {
            "runs": runs,
            "positions": positions,
            "compressed": backend.compressed_attention(*near, runs, 0.2, self.sinks),
            "all runs": backend.compressed_attention(*near, None, 0.2, self.sinks),
            "selected": backend.selected_latent_attention(
                queries, self.latents, 33, part, positions, 0.2
            ),
            "sinks": backend.attention_with_sinks(
                queries, self.keys, self.keys, part, 0.2, WINDOW, self.sinks
            ),
        }


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_rows_alone_and_together(level: str, dtype: str) -> None:
    state = _State(dtype)
    backend = CpuBackend(level=level, threads=2)
    every = np.ones(state.count, bool)
    together = state.run(backend, every)
    for rows in (np.arange(1), np.arange(4, 7), np.arange(9, 38), np.array([39])):
        chosen = np.zeros(state.count, bool)
        chosen[rows] = True
        for name, part in state.run(backend, chosen).items():
            assert _same_bits(part, together[name][chosen]), name
    for threads in (1, 7):
        other = state.run(CpuBackend(level=level, threads=threads), every)
        assert all(_same_bits(other[name], together[name]) for name in together)


def test_runs_are_the_same_whenever_they_are_made() -> None:
    state = _State()
    backend = CpuBackend(threads=2)
    together = backend.pool_runs(state.pairs, state.rows, STRIDE, state.pairs, state.rows)
    completing = state.rows.completing(STRIDE)
    assert len(together) == len(completing) > 3
    for index, row in enumerate(completing):
        chosen = np.zeros(state.count, bool)
        chosen[row] = True
        part = state.rows.part(chosen)
        alone = backend.pool_runs(state.pairs, part, STRIDE, state.pairs, part)
        assert _same_bits(alone[0], together[index])


@pytest.mark.parametrize("level", LEVELS)
def test_equal_scores_go_to_the_lower_entry(level: str) -> None:
    """Few different scores, zero with both signs among them, over several segments."""
    generator = np.random.default_rng(3)
    length, top_k = 3000, 1100
    keys = generator.integers(-1, 3, (length // 8, 8, 1)).astype(np.float32)
    rows = PagedRows(
        np.array([0, 1], np.int32),
        np.array([length - 1], np.int32),
        np.arange(length // 8, dtype=np.int32)[None],
        8,
    )
    for weight in (1.0, -1.0):
        weights = np.full((1, 1), weight, np.float32)
        backend = CpuBackend(level=level, threads=2)
        found = backend.select_entries(
            np.ones((1, 1, 1), np.float32), weights, keys, rows, 1, top_k
        )
        scores = weight * np.maximum(keys.reshape(-1), 0)
        expected = np.sort(np.argsort(-scores, kind="stable")[:top_k])
        assert found[0].tolist() == expected.tolist()


def test_what_is_no_number_is_chosen_last() -> None:
    keys = np.array([np.nan, 1.0, np.inf, np.nan, 0.5, 2.0], np.float32).reshape(1, 6, 1)
    rows = PagedRows(
        np.array([0, 1], np.int32), np.array([5], np.int32), np.zeros((1, 1), np.int32), 6
    )
    ones = np.ones((1, 1, 1), np.float32)
    for top_k, expected in ((2, [2, 5]), (4, [1, 2, 4, 5]), (5, [0, 1, 2, 4, 5])):
        found = CpuBackend(threads=1).select_entries(ones, ones[0], keys, rows, 1, top_k)
        assert found[0].tolist() == expected


@pytest.mark.parametrize(
    "level",
    [each for each in LEVELS if backend_module._native.Kernels(each, 1).multiplies_bfloat16],
)
def test_selected_positions_in_products_of_bfloat16(level: str) -> None:
    """DeepSeek-V3.2's sizes; some rows select less than the others."""
    generator = np.random.default_rng(7)
    rows, pages = paged_rows(Layout("two", ((600, 2), (90, 1)), 64), generator)
    entries = generator.standard_normal((pages, 64, 576), dtype=np.float32)
    entries = (entries.view(np.uint32) >> 16).astype(np.uint16)
    queries = generator.standard_normal((3, 16, 576), dtype=np.float32)
    selected = np.full((3, 128), -1, np.int32)
    for row, position in enumerate(rows.positions):
        count = min(128, int(position))
        selected[row, :count] = np.sort(generator.permutation(int(position) + 1)[:count])
    arguments = (queries, entries, 512, rows, selected, 576**-0.5)
    found = CpuBackend(level=level, threads=2).selected_latent_attention(*arguments)
    rounded = NumpyBackend(bfloat16_for_bfloat16).selected_latent_attention(*arguments)
    plain = NumpyBackend().selected_latent_attention(*arguments)
    largest = np.abs(rounded).max()
    assert np.abs(found - rounded).max() < 5e-4 * largest
    assert 1e-5 * largest < np.abs(found - plain).max() < 2e-2 * largest


def test_pages_and_numbers_out_of_bounds_are_refused() -> None:
    state, backend = _State(), CpuBackend(threads=1)
    near = (state.queries, state.keys, state.rows, WINDOW)
    chosen = np.zeros((state.count, 1), np.int32)
    for wrong in (10**6, 200):
        chosen[0] = wrong
        with pytest.raises(IndexError):
            backend.compressed_attention(
                *near, state.runs, state.far_rows, STRIDE, chosen, 1.0, state.sinks
            )
    few = state.runs[:3]
    with pytest.raises(IndexError):
        backend.select_entries(state.queries, state.weights, few, state.far_rows, STRIDE, TOP_K)
    for latents in (state.latents, state.latents.astype(np.float32)):
        with pytest.raises(ValueError, match="size"):
            backend.selected_latent_attention(
                state.queries[:, :, :9], latents, 9, state.rows, np.maximum(chosen, 0) * 0, 1.0
            )
        with pytest.raises(IndexError):
            backend.selected_latent_attention(
                state.queries, latents, 9, state.rows, np.full((state.count, 1), 10**6, np.int32), 1
            )
    with pytest.raises(ValueError, match="whole runs"):
        backend.select_entries(state.queries, state.weights, state.runs, state.far_rows, 5, TOP_K)
    with pytest.raises(ValueError, match="sinks"):
        backend.attention_with_sinks(
            state.queries, state.keys, state.keys, state.rows, 1.0, None, state.sinks[1:]
        )
