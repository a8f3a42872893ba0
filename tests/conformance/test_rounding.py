"""What rounding an activation means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.registry import get_format
from firstlight.ops.rounding import (
    FIXED16_LIMIT,
    Rounding,
    fixed16,
    mixed16,
    round_activations,
)
from firstlight.verify.cases import StreamArgument, cases_of
from firstlight.verify.random_weights import random_weight


def test_fixed16_steps_are_whole_and_reach_the_limit() -> None:
    x = np.random.default_rng(0).standard_normal((7, 100)).astype(np.float32)
    steps, scale = fixed16(x)
    assert np.array_equal(steps, np.rint(steps))
    assert (np.abs(steps).max(axis=1) == FIXED16_LIMIT).all()
    assert (np.abs(steps * scale[:, None] - x) <= 0.51 * scale[:, None]).all()


def test_mixed16_gives_multiples_of_what_the_third_quad_needs() -> None:
    steps = np.zeros((1, 64), np.float32)
    steps[0, 3], steps[0, 17] = -32004, 5000  # in quads 0 and 4, which set no step
    steps[0, 1], steps[0, 18] = 3, -7
    steps[0, 31], steps[0, 8] = 1270, 14  # 1270 is 127 steps of 10, and 14 becomes 1 of them
    steps[0, 32:] = np.arange(32)  # nothing is beyond a byte
    expected = steps.copy()
    expected[0, [1, 3, 8, 18]] = 0, -32000, 10, -10
    assert np.array_equal(mixed16(steps), expected)


def test_mixed16_of_equal_quads() -> None:
    steps = np.full((1, 32), 1001, np.float32)  # the step is 8: 125 of them are 1000
    assert mixed16(steps).tolist() == [[1000] * 32]


@pytest.mark.parametrize(
    "largest, step", [(127, 1), (128, 2), (127 * 15, 15), (127 * 16 + 1, 18), (127 * 35 - 5, 36)]
)
def test_mixed16_has_steps_of_four_significant_bits(largest: int, step: int) -> None:
    steps = np.full((1, 32), largest, np.float32)
    steps[0, 5] = step / 2 + 0.01
    steps[0, 6] = step / 2 - 0.01
    assert mixed16(steps)[0, [5, 6]].tolist() == [step, 0]


def test_mixed16_stays_within_two_signed_bytes() -> None:
    steps = np.full((1, 32), FIXED16_LIMIT, np.float32)
    assert np.abs(mixed16(steps)).max() <= 127 * 256 + 127
    steps = np.arange(FIXED16_LIMIT - 400, FIXED16_LIMIT, dtype=np.float32).repeat(32)
    steps[::32] = FIXED16_LIMIT
    assert np.abs(mixed16(steps[None])).max() <= 127 * 256 + 127


def test_mixed16_is_off_by_half_a_step_at_most_and_by_less_than_bytes_alone() -> None:
    steps, _ = fixed16(np.random.default_rng(0).standard_normal((50, 320)).astype(np.float32))
    groups, rounded = steps.reshape(-1, 32), mixed16(steps).reshape(-1, 32)
    quads = np.sort(np.abs(groups).reshape(-1, 8, 4).max(axis=2), axis=1)
    step = np.ceil(quads[:, 5] / 127)
    error = np.abs(rounded - groups)
    assert (error <= 1.125 * step[:, None] / 2).all()
    bytes_alone = np.abs(groups).max(axis=1, keepdims=True) / 127
    noise = np.square(np.rint(groups / bytes_alone) * bytes_alone - groups).sum()
    assert np.square(error).sum() < 0.6 * noise


def test_mixed16_of_a_last_group_of_fewer_columns() -> None:
    steps, _ = fixed16(np.random.default_rng(0).standard_normal((3, 75)).astype(np.float32))
    padded = np.pad(steps, ((0, 0), (0, 21)))
    assert np.array_equal(mixed16(steps), mixed16(padded)[:, :75])


@pytest.mark.parametrize("shape", [(0, 64), (0, 5), (3, 0)])
def test_mixed16_of_nothing(shape: tuple[int, int]) -> None:
    assert round_activations(np.zeros(shape, np.float32), "mixed16").shape == shape


def test_mixed16_of_zeros_and_of_what_is_not_finite() -> None:
    x = np.zeros((4, 5), np.float32)
    x[1, 2], x[2, 3], x[3, :] = np.nan, np.inf, 1e-38
    rounded = round_activations(x, "mixed16")
    assert (rounded[[0, 3]] == 0).all()
    assert np.isnan(rounded[1:3]).all()


def test_bfloat16_is_as_torch_rounds() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((50, 999)).astype(np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(round_activations(x, "bfloat16"), expected)


@pytest.mark.parametrize("rounding", ["mixed16", "bfloat16"])
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


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_the_oracle_rounds_attention_over_bfloat16_state_alone(state: str) -> None:
    (case,) = (case for case in cases_of("attention") if case.name == f"size 128, {state}")
    given: Any = [
        argument.pages if isinstance(argument, StreamArgument) else argument
        for argument in case.arguments()
    ]
    kept = NumpyBackend().attention(*given)
    rounded = NumpyBackend(lambda format: "bfloat16").attention(*given)
    difference = np.abs(rounded - kept).max()
    assert difference == 0 if state == "float32" else 1e-4 < difference < 2.0**-7
