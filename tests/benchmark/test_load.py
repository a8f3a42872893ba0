"""Arrivals, limits and figures of loads."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from firstlight.benchmark.load import Load, Record, run_load, summarise
from firstlight.benchmark.percentiles import percentiles
from firstlight.benchmark.prompts import token_prompts, word_prompts
from firstlight.errors import RequestError


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(Load(20_000, rate=5.0, seed=3).arrivals())
    # The gaps of a Poisson process are exponential: mean and deviation both 1 / rate, and of each
    # length the share that the distribution function says.
    assert np.mean(gaps) == pytest.approx(0.2, rel=0.03)
    assert np.std(gaps) == pytest.approx(0.2, rel=0.03)
    for length in (0.05, 0.2, 0.6):
        assert np.mean(gaps < length) == pytest.approx(1 - np.exp(-5 * length), abs=0.01)


def test_arrivals_repeat_with_their_seed() -> None:
    assert Load(50, rate=2.0, seed=1).arrivals() == Load(50, rate=2.0, seed=1).arrivals()
    assert Load(50, rate=2.0, seed=1).arrivals() != Load(50, rate=2.0, seed=2).arrivals()


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0, "concurrency": 1},
        {"requests": 1, "concurrency": 0},
        {"requests": 1, "rate": 0.0},
        {"requests": 1, "rate": float("nan")},
        {"requests": 1, "rate": float("inf")},
        {"requests": 1},
    ],
)
def test_a_load_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Load(**wrong)


def test_at_most_as_many_as_allowed_are_open_and_all_are_sent() -> None:
    now = most = 0
    sent = []

    async def send(number: int, record: Record) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001 * (number % 3))
        sent.append(number)
        now -= 1

    done: list[int] = []
    records = asyncio.run(run_load(Load(40, concurrency=5), send, done.append))
    assert most == 5
    assert sorted(sent) == list(range(40))
    assert len(records) == sum(done) == 40


def test_with_a_rate_requests_come_whether_or_not_others_have_ended() -> None:
    entered = 0
    all_in = asyncio.Event()

    async def send(number: int, record: Record) -> None:
        nonlocal entered
        entered += 1
        if entered == 10:
            all_in.set()
        await asyncio.wait_for(all_in.wait(), 30)

    records = asyncio.run(run_load(Load(10, rate=500.0), send, lambda _: None))
    assert [record.error for record in records] == [""] * 10


def test_with_a_rate_waiting_for_room_counts_as_waiting() -> None:
    async def send(number: int, record: Record) -> None:
        await asyncio.sleep(0.02)

    records = asyncio.run(run_load(Load(8, concurrency=1, rate=1e6), send, lambda _: None))
    # All arrive at once and are served one by one: the last has waited for all before it.
    waits = sorted(record.ended - record.arrived for record in records)
    assert waits[-1] >= 8 * 0.02
    closed = asyncio.run(run_load(Load(8, concurrency=1), send, lambda _: None))
    assert max(record.ended - record.arrived for record in closed) < waits[-1]


def test_errors_are_counted_and_do_not_enter_the_figures() -> None:
    good = Record(10.0, [11.0, 11.5, 12.5], 13.0, prompt_tokens=4, output_tokens=3)
    bad = Record(10.0, [10.1], 20.0, prompt_tokens=9, output_tokens=9, error="broke")
    result = summarise([good, bad, bad])
    assert (result.requests, result.failed, result.errors) == (3, 2, {"broke": 2})
    assert (result.prompt_tokens, result.output_tokens) == (4, 3)
    assert result.seconds == 10.0
    assert result.requests_per_second == pytest.approx(0.1)
    assert result.output_tokens_per_second == pytest.approx(0.3)
    assert (result.first_token.p50, result.whole.p50) == (1.0, 3.0)
    assert (result.between_tokens.count, result.between_tokens.mean) == (2, 0.75)


def test_percentiles_of_nothing_and_of_something() -> None:
    assert percentiles([]).count == 0
    found = percentiles([float(value) for value in range(1, 101)])
    assert (found.count, found.mean, found.largest) == (100, 50.5, 100.0)
    assert (found.p50, found.p90, found.p99) == (50.5, pytest.approx(90.1), pytest.approx(99.01))


def test_prompts_have_their_length_and_differ() -> None:
    ids = token_prompts(30, 12, 500, seed=4, avoid=[0, 1, 2])
    assert all(len(prompt) == 12 and not {0, 1, 2} & set(prompt) for prompt in ids)
    assert len({tuple(prompt) for prompt in ids}) == 30
    words = word_prompts(30, 12)
    assert all(isinstance(prompt, str) and len(prompt.split()) == 12 for prompt in words)
    assert len(set(map(str, words))) == 30
    with pytest.raises(RequestError):
        token_prompts(1, 1, 2, avoid=[0, 1])
