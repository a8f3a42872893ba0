"""What an engine offers those who serve many: priorities, tenants, bounds, going on elsewhere."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pytest

from firstlight.engine.batching import HEAD_ROWS
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import InsufficientMemoryError, RequestError
from firstlight.formats.base import Floats
from tests.support.tiny_engine import (
    CONTEXT_LENGTH,
    GREEDY,
    PAGE_TOKENS,
    SEEDED,
    VOCABULARY,
    free_pages,
    prompt_of,
    run_to_end,
    shared_decoder,
    tokens_alone,
)

STOP = StopConditions(max_tokens=16)


def engine(sequences: int = 4, token_budget: int = 64, **options: Any) -> Engine:
    return Engine(
        shared_decoder(),
        CONTEXT_LENGTH,
        sequences,
        token_budget,
        page_tokens=PAGE_TOKENS,
        **options,
    )


# Bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [6_000, 20_000, 50_000, 400_000])
def test_state_takes_the_memory_that_it_is_given(memory: int) -> None:
    it = engine(state_memory=memory, token_budget=8)
    taken = sum(pages.nbytes for layer in it._state for pages in layer)
    assert 0.7 * memory < taken <= memory
    sequence = it.add(prompt_of(5), GREEDY, StopConditions())
    run_to_end(it)
    assert sequence.length == it.sequence_tokens + 1
    assert it.sequence_tokens <= CONTEXT_LENGTH
    assert (it.sequence_tokens == CONTEXT_LENGTH) == (memory >= 20_000)
    assert free_pages(it) == list(it.pages.capacities)


def test_what_can_never_fit_is_refused() -> None:
    it = engine(state_memory=6_000, token_budget=8)
    assert it.sequence_tokens < 30
    with pytest.raises(RequestError, match=r"30 tokens, and there is state for \d+"):
        it.add(prompt_of(30), GREEDY, STOP)
    with pytest.raises(InsufficientMemoryError, match="state_memory 100"):
        engine(state_memory=100)
    for wrong in (0, -1, 2.5):
        with pytest.raises(RequestError, match="state_memory"):
            engine(state_memory=wrong)


def test_too_little_memory_for_all_at_once_delays_them_only() -> None:
    it = engine(state_memory=22_000, token_budget=8, sequences=8)
    sequences = [it.add(prompt_of(30, seed), SEEDED, STOP) for seed in range(6)]
    run_to_end(it)
    assert [each.output_ids for each in sequences] == [
        tokens_alone(prompt_of(30, seed), SEEDED) for seed in range(6)
    ]
    assert free_pages(it) == list(it.pages.capacities)


def test_a_long_prompt_does_not_stall_those_that_decode() -> None:
    it = engine(token_budget=40, prompt_budget=6, prefix_caching=False)
    streams = [it.add(prompt_of(3, seed), GREEDY, StopConditions()) for seed in range(3)]
    it.step()
    long = [it.add(prompt_of(40, 9), GREEDY, STOP)]
    while not long[-1].output_ids:
        before = long[-1].computed
        assert [part.token_id is not None for part in it.step()[:3]] == [True] * 3
        assert long[-1].computed - before <= 6
    assert all(len(each.output_ids) == 1 + 7 for each in streams)


def test_without_streams_prompts_get_the_whole_budget() -> None:
    it = engine(token_budget=40, prompt_budget=6)
    first, second = it.add(prompt_of(15), GREEDY, STOP), it.add(prompt_of(20), GREEDY, STOP)
    it.step()  # several prompts in one step
    assert len(first.output_ids) == len(second.output_ids) == 1


# Order -------------------------------------------------------------------------------------


def test_higher_priority_takes_the_place_of_a_lower_one() -> None:
    it = engine(sequences=1)
    low = it.add(prompt_of(9), SEEDED, STOP)
    for _ in range(4):
        it.step()
    high = it.add(prompt_of(5), SEEDED, STOP, priority=1)
    equal = it.add(prompt_of(6), SEEDED, STOP)
    order = []
    while progress := it.step():
        order += [part.sequence for part in progress if part.sequence.finish is not None]
    assert order == [high, low, equal]
    assert it.statistics().preemptions == 1
    assert low.output_ids == tokens_alone(prompt_of(9), SEEDED)


@pytest.mark.parametrize("priority", ["1", 1.5, 1 << 40])
def test_priorities_are_whole_numbers(priority: Any) -> None:
    with pytest.raises(RequestError, match="priority"):
        engine().add([1], GREEDY, STOP, priority=priority)


# Going on elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_going_on_after_tokens_from_elsewhere(sampling: SamplingParameters) -> None:
    expected = tokens_alone(prompt_of(10), sampling)
    for count in range(16):
        it = engine(token_budget=7)
        sequence = it.add(prompt_of(10), sampling, STOP, output_ids=expected[:count])
        tokens = []
        while progress := it.step():
            tokens += [part.token_id for part in progress if part.token_id is not None]
        assert (sequence.output_ids, sequence.finish) == (expected, "length")
        assert tokens == expected[count:]


def test_tokens_from_elsewhere_may_be_the_end() -> None:
    it = engine()
    at_limit = it.add([1], GREEDY, StopConditions(max_tokens=2), output_ids=[2, 3])
    at_end = it.add([1], GREEDY, StopConditions(end_ids=frozenset({3})), output_ids=[2, 3])
    full = it.add([1], GREEDY, StopConditions(), output_ids=prompt_of(CONTEXT_LENGTH))
    assert [each.finish for each in (at_limit, at_end, full)] == ["length", "stop", "length"]
    assert it.step() == []
    with pytest.raises(RequestError, match="output token 99"):
        it.add([1], GREEDY, STOP, output_ids=[99])


# Prefixes ----------------------------------------------------------------------------------


def test_state_is_shared_within_a_tenant() -> None:
    it = engine()
    found = []
    for tenant in ("a", "a", "b", "b"):
        sequence = it.add(prompt_of(30), SEEDED, STOP, tenant=tenant)
        run_to_end(it)
        assert sequence.output_ids == tokens_alone(prompt_of(30), SEEDED)
        found.append(sequence.cached_tokens)
    assert found == [0, 28, 0, 28]
    done = it.statistics()
    assert (done.prompt_tokens, done.cached_tokens) == (120, 56)


def test_several_answers_to_one_prompt_share_its_pages() -> None:
    it = engine(sequences=8, token_budget=8)
    samplings = [SamplingParameters(temperature=1.5, seed=seed) for seed in range(4)]
    sequences = [it.add(prompt_of(30), each, STOP) for each in samplings]
    while any(not each.output_ids for each in sequences):
        it.step()
    full = next(index for index, each in enumerate(it.pages.groups) if each.window is None)
    tables = [each.pages.pages[full][:7] for each in sequences]
    assert all(table == tables[0] for table in tables)
    run_to_end(it)
    assert [each.cached_tokens for each in sequences] == [0, 28, 28, 28]
    assert [each.output_ids for each in sequences] == [
        tokens_alone(prompt_of(30), each) for each in samplings
    ]


def test_without_prefix_caching_nothing_is_shared() -> None:
    it = engine(prefix_caching=False)
    for _ in range(2):
        sequence = it.add(prompt_of(30), GREEDY, STOP)
        run_to_end(it)
        assert sequence.cached_tokens == 0


# Logits of a prompt, and which tokens are allowed --------------------------------------------


@pytest.mark.parametrize("token_budget", [5, 64])
def test_logits_of_a_prompt_come_in_order_each_once(token_budget: int) -> None:
    it = engine(state_memory=22_000, sequences=8, token_budget=token_budget)
    expected = it.logits(prompt_of(50))
    rows: list[tuple[int, Floats]] = []
    sequence = it.add(
        prompt_of(50),
        GREEDY,
        StopConditions(max_tokens=4),
        receive_prompt_logits=lambda position, logits: rows.append((position, logits)),
    )
    it.step()
    it.add(prompt_of(50, 1), GREEDY, STOP, priority=1)  # takes its pages half-way
    run_to_end(it)
    starts = [position for position, _ in rows]
    assert starts == [sum(len(logits) for _, logits in rows[:index]) for index in range(len(rows))]
    assert max(len(logits) for _, logits in rows) <= HEAD_ROWS
    np.testing.assert_allclose(
        np.concatenate([logits for _, logits in rows]), expected, rtol=1e-4, atol=1e-5
    )
    assert sequence.output_ids == tokens_alone(prompt_of(50), stop=StopConditions(max_tokens=4))


def test_only_allowed_tokens_are_chosen() -> None:
    def even(output_ids: Items[int]) -> np.ndarray:
        return np.arange(VOCABULARY) % 2 == len(output_ids) % 2

    for sampling in (GREEDY, SEEDED):
        it = engine(speculation=3)
        sequence = it.add(prompt_of(9), sampling, STOP, allowed=even)
        free = it.add(prompt_of(9), sampling, STOP, allowed=lambda _: None)
        run_to_end(it)
        assert [token % 2 for token in sequence.output_ids] == [0, 1] * 8
        assert free.output_ids == tokens_alone(prompt_of(9), sampling)


def test_where_no_token_is_allowed_that_sequence_ends() -> None:
    it = engine()
    sequence = it.add([1], GREEDY, STOP, allowed=lambda _: np.zeros(VOCABULARY, bool))
    other = it.add([2], GREEDY, STOP)
    run_to_end(it)
    assert isinstance(sequence.error, RequestError)
    assert other.finish == "length"


def test_statistics_of_a_run() -> None:
    it = engine(sequences=2)
    for length in (9, 5, 7):
        it.add(prompt_of(length), GREEDY, STOP)
    assert it.statistics().waiting == 3
    it.step()
    now = it.statistics()
    assert (now.running, now.waiting, now.output_tokens) == (2, 1, 2)
    assert 0 < now.free_pages < now.pages == sum(it.pages.capacities)
    run_to_end(it)
    now = it.statistics()
    assert (now.prompt_tokens, now.output_tokens, now.free_pages) == (21, 48, now.pages)
    assert now.steps == 32
    assert now.step_seconds > 0
