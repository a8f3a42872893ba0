"""Codes with scales and whole zeros: what they promise, and how near they come."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import FormatError
from firstlight.formats.integer_blocks import join_blocks, lossless_format
from firstlight.formats.legacy import Q4_0, Q4_1
from firstlight.formats.zero_points import BLOCK, fit_zero_points


def _values(kind: str) -> np.ndarray:
    generator = np.random.default_rng(len(kind))
    values = generator.standard_normal((24, 256))
    match kind:
        case "shifted":
            values = values + 0.7
        case "positive":
            values = np.abs(values) + 3
        case "far":
            values[:, ::40] *= 20
        case "tiny":
            values = values * 1e-6
        case "large":
            values = values * 5e3
    return values.astype(np.float32)


def _decoded(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    wide, zero = (np.repeat(part, BLOCK, axis=1) for part in (scales, zeros))
    return (codes.astype(np.float32) - zero) * wide


def _error(values: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.sqrt(np.square(decoded - values).mean() / np.square(values).mean()))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "shifted", "positive", "far", "tiny", "large"])
def test_what_is_found_is_a_q4_1_or_q4_0_exactly(kind: str, symmetric: bool) -> None:
    values = _values(kind)
    codes, scales, zeros = fit_zero_points(values, symmetric=symmetric)
    assert codes.max() <= 15 and zeros.max() <= 15
    format = lossless_format(4, BLOCK, scales, zeros.astype(np.int16))
    assert format is (Q4_0 if symmetric else Q4_1)
    blocks = join_blocks(codes, scales, zeros.astype(np.int16), BLOCK, format)
    np.testing.assert_array_equal(format.decode(blocks), _decoded(codes, scales, zeros))


@pytest.mark.parametrize(("kind", "most"), [("normal", 1.13), ("shifted", 1.13), ("far", 1.2)])
def test_a_whole_zero_costs_little_beside_a_free_minimum(kind: str, most: float) -> None:
    values = _values(kind)
    assert Q4_1.fit is not None
    free = _error(values, Q4_1.decode(Q4_1.fit(values)))
    assert free <= _error(values, _decoded(*fit_zero_points(values))) < most * free


def test_without_zeros_it_is_near_q4_0() -> None:
    values = _values("normal")
    assert Q4_0.fit is not None
    free = _error(values, Q4_0.decode(Q4_0.fit(values)))
    assert _error(values, _decoded(*fit_zero_points(values, symmetric=True))) < 1.03 * free


def test_a_short_search_comes_near_the_best_there_is() -> None:
    values = _values("normal")[:4]
    found = _error(values, _decoded(*fit_zero_points(values)))
    blocks = values.reshape(-1, BLOCK)
    best = np.full(len(blocks), np.inf)
    for share in np.linspace(0.7, 1.1, 81):
        step = (blocks.max(1) - blocks.min(1)) * share / 15
        for zero in range(16):
            codes = np.clip(np.rint(blocks / step[:, None]) + zero, 0, 15)
            best = np.minimum(best, np.square((codes - zero) * step[:, None] - blocks).sum(1))
    assert found < 1.03 * np.sqrt(best.sum() / np.square(blocks).sum())


def test_blocks_of_zeros_keep_a_scale_that_readers_can_divide_by() -> None:
    codes, scales, zeros = fit_zero_points(np.zeros((2, 64), np.float32))
    assert (scales == 1).all()
    assert not _decoded(codes, scales, zeros).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e6])
def test_values_that_cannot_be_expressed(value: float) -> None:
    values = _values("normal")
    values[3, 7] = value
    with pytest.raises(FormatError, match="not finite, or too large"):
        fit_zero_points(values)
