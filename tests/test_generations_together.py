"""Several generations on one engine: each is the same as alone, whoever drives."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstlight.engine.parameters import StopConditions
from firstlight.generation import Piece
from tests.support.tiny_engine import (
    GREEDY,
    SEEDED,
    free_pages,
    prompt_of,
    tiny_engine,
    tokens_alone,
)
from tests.support.tiny_generation import LONG, generation

COMPANY = [(prompt_of(n), how) for n, how in ((6, SEEDED), (6, GREEDY), (11, SEEDED), (3, SEEDED))]
COMPANY_STOP = StopConditions(max_tokens=12, stop=("b",))


@cache
def company_alone() -> list[list[Piece]]:
    """The pieces of each, with an engine to itself."""
    return [list(generation(tiny_engine(), prompt, how, COMPANY_STOP)) for prompt, how in COMPANY]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=st.lists(st.integers(0, 3), max_size=60),
    sequences=st.integers(1, 4),
    token_budget=st.integers(1, 20),
)
def test_iterated_in_any_order_each_is_the_same_as_alone(
    turns: list[int], sequences: int, token_budget: int
) -> None:
    engine = tiny_engine(sequences=sequences, token_budget=token_budget)
    all_of_them = [generation(engine, prompt, how, COMPANY_STOP) for prompt, how in COMPANY]
    iterators = [iter(each) for each in all_of_them]
    got: list[list[Any]] = [[] for _ in iterators]
    for turn in turns:
        got[turn] += [piece for piece in [next(iterators[turn], None)] if piece is not None]
    for index, iterator in enumerate(iterators):
        got[index] += iterator
    assert got == company_alone()
    assert [list(each) for each in all_of_them] == company_alone()
    assert free_pages(engine) == list(engine.pages.capacities)


def test_with_state_for_one_the_second_waits_for_the_first() -> None:
    engine = tiny_engine(sequences=1)
    first, second = generation(engine), generation(engine, prompt_of(9))
    next(iter(first))
    assert second.token_ids == tokens_alone(prompt_of(9), SEEDED, LONG)
    assert first.token_ids == tokens_alone(prompt_of(6), SEEDED, LONG)


def test_with_state_for_one_closing_the_first_lets_the_second_begin() -> None:
    engine = tiny_engine(sequences=1)
    first, second = generation(engine), generation(engine, prompt_of(9))
    next(iter(first))
    first.close()
    next(iter(second))
    assert len(first.token_ids) == 1
    assert second.token_ids == tokens_alone(prompt_of(9), SEEDED, LONG)


def test_a_stop_string_ends_one_that_another_drives() -> None:
    text = generation().text
    engine = tiny_engine(sequences=1)
    stop = StopConditions(stop=(text[4:7],))  # no other limit but the context
    first, second = generation(engine, stop=stop), generation(engine, prompt_of(9))
    assert second.text
    assert first._sequence.finish == "stop"
    assert first.text == text[: text.index(text[4:7])]
