"""What rounding an activation means."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.registry import get_format
from firstlight.ops.rounding import FIXED16_LIMIT, Rounding, fixed16, round_activations
from firstlight.verify.random_weights import random_weight


def test_fixed16_steps_are_whole_and_reach_the_limit() -> None:
    x = np.random.default_rng(0).standard_normal((7, 100)).astype(np.float32)
    steps, scale = fixed16(x)
    assert np.array_equal(steps, np.rint(steps))
    assert (np.abs(steps).max(axis=1) == FIXED16_LIMIT).all()
    assert (np.abs(steps * scale[:, None] - x) <= 0.51 * scale[:, None]).all()


def test_fixed16_of_zeros_and_of_what_is_not_finite() -> None:
    x = np.zeros((4, 5), np.float32)
    x[1, 2], x[2, 3], x[3, :] = np.nan, np.inf, 1e-38
    rounded = round_activations(x, "fixed16")
    assert (rounded[[0, 3]] == 0).all()
    assert np.isnan(rounded[1:3]).all()


def test_bfloat16_is_as_torch_rounds() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((50, 999)).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(round_activations(x, "bfloat16"), expected)


@pytest.mark.parametrize("rounding", ["fixed16", "bfloat16"])
def test_a_row_is_rounded_by_itself(rounding: Rounding) -> None:
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    alone = np.concatenate([round_activations(x[i : i + 1], rounding) for i in range(9)])
    assert np.array_equal(round_activations(x, rounding), alone)


def test_the_oracle_rounds_the_products_of_the_formats_it_is_told() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 64)).astype(np.float32)
    rounds_q8_0 = NumpyBackend(lambda format: "bfloat16" if format.name == "q8_0" else "none")
    for name in ("q8_0", "q4_0"):
        weight = random_weight(get_format(name), 5, 64, generator)
        expected = NumpyBackend().linear(
            round_activations(x, "bfloat16") if name == "q8_0" else x, weight
        )
        assert np.array_equal(rounds_q8_0.linear(x, weight), expected)
