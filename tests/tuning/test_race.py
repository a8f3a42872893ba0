"""Which candidate wins, on quiet machines and on noisy ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.tuning.race import LEAST_GAIN, Outcome, median_bounds, race
from tests.support.fake_chip import FakeClock


def run_race(seconds: list[float], budget: float, clock: FakeClock, seed: int = 0) -> Outcome:
    def sample(index: int) -> float:
        started = clock()
        clock.take(seconds[index])
        return clock() - started

    return race(len(seconds), sample, budget, clock=clock, seed=seed)


def test_the_fastest_wins_on_a_quiet_machine() -> None:
    outcome = run_race([1.0, 1.2, 0.9, 0.5, 0.7, 1.9], 1000, FakeClock())
    assert outcome.winner == 3
    assert outcome.ratio == pytest.approx(0.5)
    assert outcome.seconds[3] == pytest.approx(0.5)
    assert outcome.decided


def test_the_default_stays_where_nothing_is_faster() -> None:
    outcome = run_race([1.0, 1.0, 1.3, 5.0], 1000, FakeClock())
    assert (outcome.winner, outcome.ratio, outcome.decided) == (0, 1.0, True)


def test_a_gain_too_small_is_not_taken() -> None:
    outcome = run_race([1.0, 1.0 - LEAST_GAIN / 2], 1000, FakeClock())
    assert (outcome.winner, outcome.decided) == (0, True)


def test_a_single_candidate_needs_no_race() -> None:
    clock = FakeClock()
    assert run_race([1.0], 1000, clock).winner == 0
    assert clock.now <= 3


@pytest.mark.parametrize("seed", range(40))
def test_noise_does_not_flip_the_verdict(seed: int) -> None:
    clock = FakeClock(noise=0.3, interruptions=0.1, seed=seed)
    outcome = run_race([1.0] * 12, 2000, clock, seed)
    assert outcome.winner == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_real_gain_is_found_in_noise(seed: int) -> None:
    seconds = [1.0] * 12
    seconds[7] = 0.7
    clock = FakeClock(noise=0.2, interruptions=0.05, seed=seed)
    assert run_race(seconds, 3000, clock, seed).winner == 7


def test_a_clear_verdict_comes_early() -> None:
    clock = FakeClock()
    run_race([1.0, 0.5], 1e6, clock)
    assert clock.now < 200


def test_hopeless_candidates_cost_two_measurements() -> None:
    counts = [0, 0]
    clock = FakeClock()

    def sample(index: int) -> float:
        counts[index] += 1
        clock.take((1.0, 50.0)[index])
        return (1.0, 50.0)[index]

    assert race(2, sample, 1e5, clock=clock).winner == 0
    assert counts[1] == 2


def test_a_short_budget_reaches_the_first_candidates_only() -> None:
    seconds = [1.0] * 100
    seconds[1], seconds[99] = 0.5, 0.1
    clock = FakeClock()
    outcome = run_race(seconds, 60, clock)
    assert outcome.winner == 1
    assert not outcome.decided
    assert clock.now < 90


def test_the_budget_is_kept() -> None:
    for count in (2, 8, 64):
        clock = FakeClock(noise=0.1)
        run_race([1.0] * count, 300, clock)
        assert clock.now < 340


def test_bounds_of_the_median_hold_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    above = 0
    for _ in range(2000):
        least, most = median_bounds(list(generator.exponential(1.0, 25)), 0.02)
        assert least < most
        above += most < math.log(2)
    assert above / 2000 <= 0.03


def test_few_values_bound_nothing() -> None:
    assert median_bounds([1.0, 2.0, 3.0], 0.005) == (-math.inf, math.inf)
