"""Guesses: where they come from, how many there are, and that they change no token."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.engine.engine import Engine
from firstlight.engine.pages import PageTable
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Progress, Sequence
from firstlight.engine.speculation import PromptLookup, Speculator
from firstlight.errors import RequestError
from firstlight.model.rope_spec import DynamicScaling, LongRopeScaling
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
    tiny_decoder,
    tiny_spec,
    tokens_alone,
)


def sequence_of(tokens: Items[int]) -> Sequence:
    return Sequence(list(tokens), GREEDY, StopConditions(), PageTable([]))


class Oracle:
    """Knows the text; every so many guesses it is wrong."""

    def __init__(self, text: Items[int], wrong_every: int = 10**9) -> None:
        self.text, self.wrong_every = list(text), wrong_every
        self.counts: list[int] = []

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        start = len(sequence.token_ids)
        guesses = [
            (token + (index % self.wrong_every == 0)) % VOCABULARY
            for index, token in enumerate(self.text[start : start + count], start)
        ]
        self.counts.append(len(guesses))
        return guesses


def engine_with(speculation: Any, proposer: Any = None, **options: Any) -> Engine:
    return Engine(
        options.pop("decoder", None) or shared_decoder(),
        CONTEXT_LENGTH,
        page_tokens=PAGE_TOKENS,
        speculation=speculation,
        proposer=proposer,
        **options,
    )


# Where guesses come from ------------------------------------------------------------------


def test_what_followed_last_time_is_guessed() -> None:
    lookup = PromptLookup((3, 2))
    assert lookup.propose(sequence_of([1, 2, 3, 4, 5, 1, 2, 3]), 2) == [4, 5]
    assert lookup.propose(sequence_of([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3]), 1) == [8]  # the latest
    assert lookup.propose(sequence_of([9, 2, 3, 4, 1, 2, 3]), 9) == [4, 1, 2, 3]
    assert lookup.propose(sequence_of([1, 2, 3]), 4) == []
    assert lookup.propose(sequence_of([7]), 4) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_looking_up_as_a_text_grows_is_looking_it_up_anew(tokens: list[int], count: int) -> None:
    growing, lookup = sequence_of(tokens[:1]), PromptLookup()
    for token in tokens[1:]:
        found = lookup.propose(growing, count)
        assert found == PromptLookup().propose(sequence_of(growing.token_ids), count)
        assert len(found) <= count
        growing.token_ids.append(token)


# That they change nothing -----------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("wrong_every", [1, 2, 3, 5, 10**9])
@pytest.mark.parametrize("speculation", ["auto", 1, 4, 64])
def test_output_is_the_same(speculation: Any, wrong_every: int, sampling: Any) -> None:
    stop = StopConditions(max_tokens=37)
    expected = tokens_alone(prompt_of(9), sampling, stop)
    oracle = Oracle(prompt_of(9) + expected, wrong_every)
    engine = engine_with(speculation, oracle)
    progress: list[Progress] = []
    sequence = engine.add(prompt_of(9), sampling, stop)
    while found := engine.step():
        progress += found
    assert [part.token_id for part in progress] == sequence.output_ids == expected
    assert free_pages(engine) == list(engine.pages.capacities)
    done = engine.statistics()
    assert done.proposed_tokens == sum(oracle.counts) > 0
    assert done.output_tokens == 37
    assert done.steps == 37 - done.accepted_tokens
    if wrong_every == 1:
        assert done.accepted_tokens == 0
    elif wrong_every > 100:
        assert done.accepted_tokens == done.proposed_tokens


@pytest.mark.parametrize(
    "scaling", [LongRopeScaling((1.0, 1.1, 1.2, 1.3), (1.0, 3.0, 6.0, 12.0), 20, 1.2),
                DynamicScaling(4.0, 16)], ids=["longrope", "dynamic"]
)  # fmt: skip
@pytest.mark.parametrize("prompt_length", [5, 18, 19, 20, 21])
def test_where_frequencies_depend_on_the_length(scaling: Any, prompt_length: int) -> None:
    decoder = tiny_decoder(tiny_spec(scaling=scaling))
    stop = StopConditions(max_tokens=30)
    expected = tokens_alone(prompt_of(prompt_length), SEEDED, stop, decoder)
    oracle = Oracle(prompt_of(prompt_length) + expected)
    engine = engine_with(4, oracle, decoder=decoder)
    sequence = engine.add(prompt_of(prompt_length), SEEDED, stop)
    run_to_end(engine)
    assert sequence.output_ids == expected
    assert engine.statistics().accepted_tokens > 15


def test_nothing_comes_after_the_end() -> None:
    text = tokens_alone(prompt_of(9), SEEDED, StopConditions(max_tokens=30))
    end = text[10]
    engine = engine_with(8, Oracle(prompt_of(9) + text))
    stopped = engine.add(prompt_of(9), SEEDED, StopConditions(30, frozenset({end})))
    run_to_end(engine)
    assert stopped.output_ids == text[: text.index(end) + 1]
    heard = []

    def receive(progress: Progress) -> bool:
        heard.append(progress.token_id)
        return len(heard) == 7

    by_string = engine.add(prompt_of(9), SEEDED, StopConditions(30), receive=receive)
    run_to_end(engine)
    assert by_string.output_ids == heard == text[:7]
    full = engine.add(prompt_of(9), SEEDED, StopConditions())
    run_to_end(engine)
    assert full.length == CONTEXT_LENGTH + 1
    assert free_pages(engine) == list(engine.pages.capacities)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(1, 20), tokens=st.integers(1, 6))
def test_an_interrupt_among_guessed_tokens_loses_nothing(at: int, tokens: int) -> None:
    expected = tokens_alone(prompt_of(6), SEEDED, StopConditions(max_tokens=24))
    engine = engine_with(tokens, Oracle(prompt_of(6) + expected, wrong_every=7), sequences=2)
    interrupts = [True]

    def receive(progress: Progress) -> bool:
        if len(progress.sequence.output_ids) == at and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return False

    sequence = engine.add(prompt_of(6), SEEDED, StopConditions(max_tokens=24), receive=receive)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(engine)
    run_to_end(engine)
    assert sequence.output_ids == expected
    assert free_pages(engine) == list(engine.pages.capacities)


# When there are guesses --------------------------------------------------------------------


def test_wrong_guesses_become_rare_and_right_ones_many() -> None:
    speculator = Speculator("auto", Oracle(range(60)))
    wrong = sequence_of([0])
    guessed = 0
    for _ in range(400):
        count = len(speculator.propose(wrong, 50, 1))
        guessed += count
        speculator.learn(wrong, count, 0)
        wrong.token_ids.append(0)
    assert 0 < guessed < 50
    right, counts = sequence_of([0]), []
    for _ in range(5):
        counts.append(len(speculator.propose(right, 50, 1)))
        speculator.learn(right, counts[-1], counts[-1])
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_predictions_are_few_at_once_and_pause_after_several_failures() -> None:
    speculator = Speculator("mtp", Oracle(range(1000)))
    sequence, counts = sequence_of([0]), []
    for right in [1, 1, 1, 1, 1, 0, 1, 1]:
        counts.append(len(speculator.propose(sequence, 50, 1)))
        speculator.learn(sequence, counts[-1], right * counts[-1])
        sequence.token_ids.append(0)
    assert counts == [1, 2, 3, 4, 4, 4, 1, 2]
    speculator.learn(sequence, 3, 2)  # the third was wrong: guess two
    assert len(speculator.propose(sequence, 50, 1)) == 2
    guessed = 0
    for _ in range(400):
        count = len(speculator.propose(sequence, 50, 1))
        guessed += count
        speculator.learn(sequence, count, 0)
        sequence.token_ids.append(0)
    assert 0 < guessed < 50
    assert speculator.propose(sequence_of([0]), 50, 30) == ()


def test_without_a_predictor_none_is_asked_for() -> None:
    with pytest.raises(RequestError, match="no layer of multi-token prediction"):
        engine_with("mtp")
    assert engine_with("mtp", Oracle(range(60))) is not None


def test_many_sequences_are_not_guessed_for() -> None:
    def propose(speculation: Any, decoding: int, room: int = 50) -> int:
        speculator = Speculator(speculation, Oracle(range(60)))
        return len(speculator.propose(sequence_of([0]), room, decoding))

    assert propose("auto", 1) > 0
    assert propose("auto", 30) == 0
    assert propose(5, 30) == 5
    assert propose(5, 1, room=2) == 2
    assert propose("auto", 1, room=0) == propose(5, 1, room=-3) == 0


@pytest.mark.parametrize("speculation", ["on", -1, 65, 2.5, None])
def test_impossible_options_are_refused(speculation: Any) -> None:
    with pytest.raises(RequestError, match="speculation"):
        engine_with(speculation)


def test_off_never_asks() -> None:
    for speculation in ("off", 0):
        oracle = Oracle(range(60))
        engine = engine_with(speculation, oracle)
        engine.add(prompt_of(5), SamplingParameters(), StopConditions(max_tokens=9))
        run_to_end(engine)
        assert oracle.counts == []
        assert np.isclose(engine.statistics().steps, 9)


def test_what_is_allowed_is_not_asked_after_a_guess_that_is_not() -> None:
    """A grammar knows nothing of texts that are not of its language."""
    asked: list[list[int]] = []
    even = np.arange(VOCABULARY) % 2 == 0

    def allowed(output: Items[int]) -> Any:
        assert all(token % 2 == 0 for token in output)
        asked.append(list(output))
        return even

    class Guesses:
        def propose(self, sequence: Sequence, count: int) -> list[int]:
            return [text[sequence.length - 5], 7, 8][:count]

    engine = engine_with("off")
    alone = engine.add(prompt_of(5), SEEDED, StopConditions(max_tokens=20), allowed=allowed)
    run_to_end(engine)
    text = [*alone.output_ids, 0]
    asked.clear()
    engine = engine_with(3, Guesses())
    guessed = engine.add(prompt_of(5), SEEDED, StopConditions(max_tokens=20), allowed=allowed)
    run_to_end(engine)
    assert guessed.output_ids == alone.output_ids
    assert engine.statistics().accepted_tokens >= 9
    assert len(asked) <= 20


def test_an_error_behind_a_wrong_guess_is_nobodys() -> None:
    def allowed(output: Items[int]) -> Any:
        if len(output) > 2 and output[2] == wrong:
            raise RequestError("the grammar", "knows no such text", "Guess better")

    class Guesses:
        def propose(self, sequence: Sequence, count: int) -> list[int]:
            return [wrong] * count

    text = tokens_alone(prompt_of(5), SEEDED)
    wrong = next(token for token in range(VOCABULARY) if token not in text)
    engine = engine_with(3, Guesses())
    guessed = engine.add(prompt_of(5), SEEDED, StopConditions(max_tokens=16), allowed=allowed)
    run_to_end(engine)
    assert guessed.error is None
    assert guessed.output_ids == text
