"""Tuning a tiny model on a chip whose kernels take as long as the test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.backends.kernel import Choice, Kernel, Parameter
from firstlight.errors import RequestError
from firstlight.model.decoder import Decoder
from firstlight.tuning.store import Store
from firstlight.tuning.tuner import Result, Settings, find_shapes, tune
from firstlight.tuning.workload import Workload
from tests.support.fake_chip import FakeChip, FakeClock, kernel
from tests.support.tiny_engine import tiny_decoder, tiny_spec

TILE = Parameter("tile", (8, 16, 32, 64), 8)
SPLIT = Parameter("split", (1, 2), 1)
WORKLOADS = (Workload("decode", 1, 1, 16, 0.5), Workload("prefill", 1, 20, 20, 0.5))
SHAPES = 11
# Seconds of a product by its tile; a split halves them.
SECONDS = {8: 1.0, 16: 0.8, 32: 0.5, 64: 0.7}


def tile_cost(tile: int, split: int = 1) -> float:
    return SECONDS[tile] / split


class Bench:
    """A tiny model on a fake chip, its clock, and its store."""

    def __init__(self, folder: Path, clock: FakeClock, *kernels: Kernel) -> None:
        self.folder, self.clock, self.kernels = folder, clock, kernels
        self.chip = FakeChip(kernels)
        self.decoder: Decoder = tiny_decoder(tiny_spec(), ops=self.chip)

    def store(self) -> Store:
        return Store(self.chip, self.folder)

    def tune(self, seconds: float = 1e5, **settings: Any) -> list[Result]:
        options = Settings(
            seconds=seconds, page_tokens=4, context_length=64, workloads=WORKLOADS, clock=self.clock
        )
        return list(tune(self.decoder, self.chip, self.store(), options, **settings))

    def choices(self, op: str = "linear") -> set[Choice]:
        return {entry.choice for entry in self.store().entries.values() if entry.op == op}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_the_best_parameters_of_each_shape_are_kept(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE, SPLIT)))
    results = bench.tune()
    assert bench.choices() == {Choice("tiled", (("tile", 32), ("split", 2)))}
    # Query, output, key and value, gate and up, down: each for one row and twenty; and the head.
    assert len(results) == SHAPES
    for result in results:
        assert result.entry.ratio == pytest.approx(0.25)
        assert result.entry.decided
        assert result.entry.candidates == 8
    assert sum(result.share for result in results) == pytest.approx(1.0)


def test_kernels_of_one_op_compete(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(
        tmp_path,
        clock,
        kernel("linear", "slow", clock, lambda: 1.0),
        kernel("linear", "tiled", clock, tile_cost, (TILE,)),
    )
    bench.tune()
    assert bench.choices() == {Choice("tiled", (("tile", 32),))}


def test_a_small_op_may_do_best_as_its_definition(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(tmp_path, clock, kernel("add", "costly", clock, lambda: 1e-5))
    bench.tune(10)
    assert bench.choices("add") == {Choice("definition")}


@pytest.mark.parametrize("wrong", [0.5, 1e-7])
def test_a_wrong_candidate_never_serves(tmp_path: Path, clock: FakeClock, wrong: float) -> None:
    """Not by half, and not by a last bit, which would make a token depend on its batch."""

    def result(right: np.ndarray, tile: int) -> np.ndarray:
        return right * np.float32(1 + wrong) if tile == 32 else right

    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,), result))
    results = bench.tune()
    assert bench.choices() == {Choice("tiled", (("tile", 64),))}
    assert all("other bits" in each.refused["tiled(tile=32)"] for each in results)


def test_a_candidate_must_agree_on_other_cases_too(tmp_path: Path, clock: FakeClock) -> None:
    """Right for this model's sizes, wrong for others."""

    def result(right: np.ndarray, tile: int) -> np.ndarray:
        own = right.shape[1] in (16, 24, 32, 40, 61)
        return right if own or tile != 32 else right + 1

    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,), result))
    results = bench.tune()
    assert bench.choices() == {Choice("tiled", (("tile", 64),))}
    assert all("linear/tiled" in each.refused["tiled(tile=32)"] for each in results)


def test_a_candidate_that_raises_is_left_out(tmp_path: Path, clock: FakeClock) -> None:
    def result(right: np.ndarray, tile: int) -> np.ndarray:
        if tile == 32:
            raise RuntimeError("out of registers")
        return right

    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,), result))
    (first, *_) = bench.tune()
    assert bench.choices() == {Choice("tiled", (("tile", 64),))}
    assert first.refused == {"tiled(tile=32)": "raised RuntimeError: out of registers"}


def test_a_kernel_says_which_parameters_it_allows(tmp_path: Path, clock: FakeClock) -> None:
    def allows(x: np.ndarray, *_: Any, tile: int) -> bool:
        return tile <= 16 or len(x) > 1

    tiled = kernel("linear", "tiled", clock, tile_cost, (TILE,), allows=allows)
    bench = Bench(tmp_path, clock, tiled)
    bench.tune()
    chosen = {entry.shape[-1]: entry.choice for entry in bench.store().entries.values()}
    assert chosen == {
        "1": Choice("tiled", (("tile", 16),)),
        "17-64": Choice("tiled", (("tile", 32),)),
    }


def test_noise_changes_nothing(tmp_path: Path) -> None:
    clock = FakeClock(noise=0.3, interruptions=0.1, seed=3)
    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, lambda tile: 1.0, (TILE,)))
    assert bench.tune()
    assert bench.choices() == {Choice("tiled")}


def test_what_is_known_is_not_measured_again(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,)))
    first = bench.tune()
    before = clock.now
    second = bench.tune()
    assert [each.entry for each in second] == [each.entry for each in first]
    assert not any(each.fresh for each in second)
    # Only the steps that show which shapes there are.
    assert clock.now - before < 100
    assert all(each.fresh for each in bench.tune(restart=True))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as far as the tuner can tell."""


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, clock: FakeClock) -> None:
    calls = 0
    last: int | None = None

    def result(right: np.ndarray, tile: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == last:
            raise Interrupted
        return right

    tiled = kernel("linear", "tiled", clock, tile_cost, (TILE,), result)
    Bench(tmp_path / "whole", clock, tiled).tune()
    calls, last = 0, calls // 2
    bench = Bench(tmp_path / "halved", clock, tiled)
    with pytest.raises(Interrupted):
        bench.tune()
    kept = set(bench.store().entries)
    assert 0 < len(kept) < SHAPES
    results = bench.tune()
    assert {each.entry.key for each in results if not each.fresh} == kept
    assert len(bench.store().entries) == SHAPES
    assert bench.choices() == {Choice("tiled", (("tile", 32),))}


def test_a_short_time_goes_to_the_most_expensive_shapes(tmp_path: Path, clock: FakeClock) -> None:
    def run_cost(tile: int) -> float:
        return SECONDS[tile]

    bench = Bench(
        tmp_path,
        clock,
        kernel("linear", "tiled", clock, run_cost, (TILE,)),
        kernel("gate", "tiled", clock, lambda tile: 1e-3 * SECONDS[tile], (TILE,)),
    )
    results = bench.tune(700)
    assert clock.now < 1000
    assert results[0].entry.op == "linear"
    assert results[0].entry.choice == Choice("tiled", (("tile", 32),))
    shares = [each.share for each in results]
    assert shares == sorted(shares, reverse=True)


def test_undecided_shapes_get_the_time_that_others_leave(tmp_path: Path) -> None:
    clock = FakeClock(noise=0.2)
    bench = Bench(
        tmp_path,
        clock,
        kernel("linear", "tiled", clock, lambda tile: 0.97 if tile == 32 else 1.0, (TILE,)),
    )
    bench.tune(600)
    undecided = [each for each in bench.store().entries.values() if not each.decided]
    assert undecided
    bench.tune(20_000)
    assert all(each.decided for each in bench.store().entries.values())


def test_steps_too_long_to_look_at_are_made_shorter(tmp_path: Path, clock: FakeClock) -> None:
    def cost() -> float:
        return 1.0

    slow = kernel("linear", "a", clock, cost), kernel("linear", "b", clock, cost)
    bench = Bench(tmp_path, clock, *slow)
    settings = Settings(
        seconds=2000, page_tokens=4, context_length=64, workloads=WORKLOADS, clock=clock
    )
    found = find_shapes(bench.decoder, bench.chip, settings)
    rows = {each.shape[-1] for each in found}
    assert rows == {"1", "5-16"}  # 22 products a step, of 160 seconds


def test_nothing_is_in_force_while_it_measures(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,)))
    bench.tune()
    assert bench.store().apply() == SHAPES
    assert len(bench.chip.tuning()) == SHAPES
    bench.tune(restart=True)
    assert bench.chip.tuning() == {}
    assert bench.choices() == {Choice("tiled", (("tile", 32),))}


def test_logits_are_the_same_tuned_or_not(tmp_path: Path, clock: FakeClock) -> None:
    from firstlight.tuning.workload import make_batch, make_state

    bench = Bench(tmp_path, clock, kernel("linear", "tiled", clock, tile_cost, (TILE,)))

    def logits() -> np.ndarray:
        state = make_state(bench.decoder, bench.chip, 5, 4, "float32")
        return np.asarray(bench.decoder.step(make_batch(bench.decoder, WORKLOADS[1], 4), state))

    before = logits()
    bench.tune()
    bench.store().apply()
    started = clock.now
    np.testing.assert_array_equal(logits(), before)
    assert clock.now - started == pytest.approx(22 * SECONDS[32])


def test_weights_are_read_from_memory(tmp_path: Path, clock: FakeClock) -> None:
    tiled = kernel("linear", "tiled", clock, tile_cost, (TILE,))
    bench = Bench(tmp_path / "a", clock, tiled)
    bench.tune()
    assert bench.chip.evictions > 0
    gate = kernel("gate", "tiled", clock, tile_cost, (TILE,))
    bench = Bench(tmp_path / "b", clock, gate)
    bench.tune()
    assert bench.chip.evictions == 0  # activations lie in caches in a real step too


def test_without_choices_there_is_nothing_to_tune(tmp_path: Path, clock: FakeClock) -> None:
    assert Bench(tmp_path, clock).tune() == []
    assert Bench(tmp_path, clock, kernel("linear", "only", clock, lambda: 1.0)).tune() == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(RequestError, match="no time"):
        Settings(seconds=seconds)
