"""Attention over bfloat16 state with queries and the softmax's weights rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.backend import CpuBackend, available_levels
from firstlight.ops import attention
from firstlight.ops.attention import round_entries
from firstlight.ops.paging import PagedRows
from firstlight.verify.conformance import check_kernels

LEVELS = [level for level in available_levels() if _native.Kernels(level, 1).multiplies_bfloat16]
attend: Any = attention.attend
of_levels = pytest.mark.parametrize("level", LEVELS)


def _names(backend: CpuBackend) -> list[str]:
    return [kernel.name for kernel in backend.kernels() if kernel.op == "attention"]


def _arguments(
    context: int, rows: int, size: int, heads: int = 6, seed: int = 0, largest: float = 1.0
) -> tuple[Any, ...]:
    """One sequence whose last `rows` positions attend."""
    generator = np.random.default_rng(seed)
    pages = -(-context // 16)
    table = generator.permutation(pages).astype(np.int32)[None]
    positions = np.arange(context - rows, context, dtype=np.int32)
    keys, values = (
        round_entries(
            generator.standard_normal((pages, 16, 2, size), dtype=np.float32), np.dtype(np.uint16)
        )
        for _ in range(2)
    )
    queries = generator.standard_normal((rows, heads, size), dtype=np.float32) * np.float32(largest)
    where = PagedRows(np.array([0, rows], np.int32), positions, table, 16)
    return queries, keys, values, where, size**-0.5, None, None


@of_levels
def test_agrees_with_the_definition_that_rounds(level: str) -> None:
    reports = [
        report
        for report in check_kernels(CpuBackend(level, threads=2), ops=frozenset({"attention"}))
        if report.kernel == "bfloat16"
    ]
    assert len(reports) > 20
    assert not [str(report) for report in reports if not report.passed]


@pytest.mark.parametrize("largest", [0.1, 1.0, 6.0])
@of_levels
def test_rounds_as_it_announces(level: str, largest: float) -> None:
    """Far nearer to the definition that rounds than to the one that does not."""
    arguments = _arguments(700, 40, 64, largest=largest)
    found = CpuBackend(level, threads=1).attention(*arguments)
    rounded, kept = attend(*arguments, "bfloat16"), attend(*arguments, "none")
    error, effect = np.abs(found - rounded), np.abs(rounded - kept)
    assert error.mean() < 0.02 * effect.mean()
    assert np.median(error) < 1e-3 * np.median(effect)


@of_levels
def test_a_rising_maximum_rounds_no_weight_otherwise(level: str) -> None:
    """Scores that rise from block to block, and by more than the headroom."""
    queries, keys, values, *rest = _arguments(1500, 3, 32, largest=8.0)
    order = np.arange(1500, dtype=np.float32).reshape(-1, 1, 1)
    flat = keys.reshape(-1, 2, 32)
    where = rest[0].page_table[0]
    slots = (where[np.arange(1500) // 16] * 16 + np.arange(1500) % 16).astype(np.int64)
    rising = np.sign(queries[0, 0]) * order / 500
    flat[slots] = round_entries(np.broadcast_to(rising, (1500, 2, 32)).copy(), keys.dtype)
    arguments = (np.abs(queries), keys, values, *rest)
    found = CpuBackend(level, threads=1).attention(*arguments)
    expected = attend(*arguments, "bfloat16")
    assert np.abs(found - expected).max() < 1e-4


@of_levels
def test_state_in_float32_is_not_rounded(level: str) -> None:
    queries, keys, values, *rest = _arguments(100, 5, 32)
    wide = [(pages.astype(np.uint32) << 16).view(np.float32) for pages in (keys, values)]
    backend = CpuBackend(level, threads=1)
    found = backend.attention(queries, *wide, *rest)
    assert np.abs(found - attend(queries, *wide, *rest, "none")).max() < 5e-6
    assert ("attention", "bfloat16") not in backend.usage()


@of_levels
def test_exact_leaves_the_rounding_kernel_out(level: str) -> None:
    assert _names(CpuBackend(level, threads=1)) == ["bfloat16", "paged"]
    exact = CpuBackend(level, threads=1, exact=True)
    assert _names(exact) == ["paged"]
    arguments = _arguments(200, 7, 64)
    expected = attend(*arguments, "none")
    assert np.abs(exact.attention(*arguments) - expected).max() < 5e-6


@of_levels
def test_infinite_scores_give_no_number_and_tiny_ones_vanish(level: str) -> None:
    queries, keys, values, *rest = _arguments(130, 2, 32)
    queries[0, 0, 0] = np.inf
    queries[1, 1] = 1e30
    backend = CpuBackend(level, threads=1)
    found = backend.attention(queries, keys, values, *rest)
    with np.errstate(all="ignore"):
        expected = attend(queries, keys, values, *rest, "bfloat16")
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[0, 0]).all() and np.isfinite(found[0, 1:]).all()
    known = ~np.isnan(expected)
    assert np.abs(found[known] - expected[known]).max() < 1e-4
