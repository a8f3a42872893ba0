"""The engine on a tiny model: however the work is cut up, each sequence's tokens are the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.engine.parameters import StopConditions
from firstlight.engine.sequence import Progress
from firstlight.errors import RequestError
from tests.support.tiny_engine import (
    GREEDY,
    PAGE_TOKENS,
    SEEDED,
    VOCABULARY,
    WINDOW,
    free_pages,
    prompt_of,
    run_to_end,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)

SAMPLINGS = {"greedy": GREEDY, "seeded": SEEDED}
STOP = StopConditions(max_tokens=16)


@cache
def alone(length: int, seed: int, sampling: str) -> list[int]:
    return tokens_alone(prompt_of(length, seed), SAMPLINGS[sampling])


def test_the_tiny_model_has_varied_texts() -> None:
    # Otherwise no test here would notice much.
    for sampling in SAMPLINGS:
        texts = [alone(length, 0, sampling) for length in (1, 5, 30)]
        assert all(len(set(text)) > 5 for text in texts)
        assert len({tuple(text) for text in texts}) == 3


# Chunks, batches, order -----------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("token_budget", [1, 2, 3, 5, PAGE_TOKENS, WINDOW + 1, 29, 30, 31, 512])
def test_any_chunk_gives_the_same_tokens(token_budget: int, sampling: str) -> None:
    engine = tiny_engine(token_budget=token_budget)
    sequence = engine.add(prompt_of(30), SAMPLINGS[sampling], STOP)
    run_to_end(engine)
    assert sequence.output_ids == alone(30, 0, sampling)
    assert free_pages(engine) == list(engine.pages.capacities)


@pytest.mark.parametrize("token_budget", [1, 3, 7, 64])
def test_any_chunk_gives_the_same_logits(token_budget: int) -> None:
    whole = tiny_engine().logits(prompt_of(40))
    assert whole.shape == (40, VOCABULARY)
    assert whole.dtype == np.float32
    chunked = tiny_engine(token_budget=token_budget).logits(prompt_of(40))
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)


def test_logits_of_a_prefix_are_the_first_rows() -> None:
    engine = tiny_engine()
    np.testing.assert_allclose(
        engine.logits(prompt_of(30)[:11]), engine.logits(prompt_of(30))[:11], rtol=1e-5, atol=1e-6
    )
    assert free_pages(engine) == list(engine.pages.capacities)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 12),  # the step before which it comes
            st.integers(1, 30),  # prompt tokens
            st.sampled_from(list(SAMPLINGS)),
            st.one_of(st.none(), st.integers(0, 20)),  # the step before which it is removed
        ),
        min_size=1,
        max_size=6,
    ),
    sequences=st.integers(1, 4),
    token_budget=st.integers(1, 40),
)
def test_sequences_are_the_same_in_any_company(
    arrivals: list[tuple[int, int, str, int | None]], sequences: int, token_budget: int
) -> None:
    engine = tiny_engine(sequences=sequences, token_budget=token_budget)
    added = {}
    steps = 0
    while steps <= 20 or engine.step():
        for index, (arrives, length, sampling, leaves) in enumerate(arrivals):
            if steps == arrives:
                added[index] = engine.add(prompt_of(length), SAMPLINGS[sampling], STOP)
            if steps == leaves and index in added:
                engine.remove(added[index])
                assert not any(added[index].pages.pages)
        if steps <= 20:
            engine.step()
        steps += 1
        assert steps < 2000
    for index, (_, length, sampling, leaves) in enumerate(arrivals):
        sequence, expected = added[index], alone(length, 0, sampling)
        if sequence.finish == "cancelled":
            assert leaves is not None
            assert sequence.output_ids == expected[: len(sequence.output_ids)]
        else:
            assert (sequence.output_ids, sequence.finish) == (expected, "length")
    assert free_pages(engine) == list(engine.pages.capacities)


def test_sequences_beyond_the_state_wait_their_turn() -> None:
    engine = tiny_engine(sequences=2)
    sequences = [engine.add(prompt_of(9, seed), GREEDY, STOP) for seed in range(5)]
    order = []
    while progress := engine.step():
        assert len(progress) <= 2
        order += [part.sequence for part in progress if part.sequence.finish is not None]
    assert order == sequences
    assert [each.output_ids for each in sequences] == [alone(9, n, "greedy") for n in range(5)]


def test_equal_sequences_are_kept_apart() -> None:
    engine = tiny_engine(sequences=2)
    first, second = (engine.add(prompt_of(5), GREEDY, STOP) for _ in range(2))
    assert first != second
    engine.remove(second)
    run_to_end(engine)
    assert (first.finish, second.finish) == ("length", "cancelled")
    assert first.output_ids == alone(5, 0, "greedy")


def test_decoding_goes_first_and_prompts_take_what_is_left() -> None:
    engine = tiny_engine(sequences=3, token_budget=8)
    running = engine.add(prompt_of(4), GREEDY, STOP)
    engine.step()
    long, late = (engine.add(prompt_of(length), GREEDY, STOP) for length in (20, 5))
    counts = []
    for _ in range(4):
        before = long.computed, late.computed
        tokens = [part.token_id is not None for part in engine.step()]
        assert tokens[0]
        counts.append((long.computed - before[0], late.computed - before[1]))
    assert counts == [(7, 0), (7, 0), (6, 1), (1, 4)]
    assert len(running.output_ids) == 5


def test_a_long_prompt_that_came_first_does_not_hold_up_one_token() -> None:
    engine = tiny_engine(sequences=2, token_budget=4)
    engine.add(prompt_of(30), GREEDY, STOP)
    short = engine.add(prompt_of(1), GREEDY, STOP)
    for count in range(1, 9):
        engine.step()
        assert len(short.output_ids) == count


# How a sequence ends --------------------------------------------------------------------


def test_it_ends_when_the_context_is_full() -> None:
    engine = tiny_engine(context_length=20)
    sequence = engine.add(prompt_of(7), GREEDY, StopConditions())
    run_to_end(engine)
    # The last token need not be computed, so one more than the context holds is known.
    assert (sequence.length, sequence.finish) == (21, "length")
    assert sequence.output_ids == tokens_alone(prompt_of(7), stop=StopConditions(max_tokens=14))
    assert free_pages(engine) == list(engine.pages.capacities)


def test_a_prompt_may_fill_the_context_but_no_more() -> None:
    engine = tiny_engine(context_length=10)
    full = engine.add(prompt_of(10), GREEDY, StopConditions())
    run_to_end(engine)
    assert (len(full.output_ids), full.finish) == (1, "length")
    with pytest.raises(RequestError, match=r"has 11 tokens.*the context holds 10"):
        engine.add(prompt_of(11), GREEDY, StopConditions())
    with pytest.raises(RequestError, match="has 11 tokens"):
        engine.logits(prompt_of(11))


def test_it_ends_at_an_end_token() -> None:
    text = alone(5, 0, "greedy")
    end = text[9]
    first = text.index(end)
    engine = tiny_engine()
    stop = StopConditions(max_tokens=16, end_ids=frozenset({end, VOCABULARY - 1} - {*text[:first]}))
    sequence = engine.add(prompt_of(5), GREEDY, stop)
    run_to_end(engine)
    assert (sequence.output_ids, sequence.finish) == (text[: first + 1], "stop")
    assert free_pages(engine) == list(engine.pages.capacities)


def test_an_end_token_at_the_limit_counts_as_the_end() -> None:
    end = alone(5, 0, "greedy")[0]
    engine = tiny_engine()
    stop = StopConditions(max_tokens=1, end_ids=frozenset({end}))
    sequence = engine.add(prompt_of(5), GREEDY, stop)
    run_to_end(engine)
    assert sequence.finish == "stop"


def test_no_new_tokens_means_no_step() -> None:
    engine = tiny_engine()
    sequence = engine.add(prompt_of(5), GREEDY, StopConditions(max_tokens=0))
    assert (sequence.finish, sequence.output_ids) == ("length", [])
    assert engine.step() == []
    assert free_pages(engine) == list(engine.pages.capacities)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens(max_tokens: int) -> None:
    expected = alone(5, 0, "greedy")[:max_tokens]
    assert tokens_alone(prompt_of(5), stop=StopConditions(max_tokens=max_tokens)) == expected


def test_removal_at_any_time_frees_the_pages() -> None:
    for steps in range(8):
        engine = tiny_engine(token_budget=4, sequences=2)
        sequence = engine.add(prompt_of(15), GREEDY, STOP)
        other = engine.add(prompt_of(6), GREEDY, STOP)
        for _ in range(steps):
            engine.step()
        engine.remove(sequence)
        engine.remove(sequence)
        assert sequence.finish == "cancelled"
        run_to_end(engine)
        assert other.output_ids == alone(6, 0, "greedy")
        assert free_pages(engine) == list(engine.pages.capacities)


def test_a_sequence_may_be_cancelled_in_the_middle_of_a_step() -> None:
    class Cancelling(NumpyBackend):
        """Cancels a sequence while the decoder runs, as a collected `Generation` does."""

        victim: Any = None

        def call(self, name: str, *arguments: Any) -> Any:
            if self.victim is not None and name == "attention":
                self.victim.cancel()
            return super().call(name, *arguments)

    ops = Cancelling()
    engine = tiny_engine(tiny_decoder(tiny_spec(), ops=ops), sequences=2)
    victim, other = (engine.add(prompt_of(6, seed), GREEDY, STOP) for seed in range(2))
    for _ in range(4):
        engine.step()
    ops.victim = victim
    engine.step()
    assert (len(victim.output_ids), victim.finish) == (4, "cancelled")
    engine.add(prompt_of(9), GREEDY, STOP)
    run_to_end(engine)
    assert other.output_ids == alone(6, 1, "greedy")
    assert free_pages(engine) == list(engine.pages.capacities)


# What whoever steps the engine sees -----------------------------------------------------


def test_progress_tells_each_token_and_logits_where_wanted() -> None:
    engine = tiny_engine(sequences=2, token_budget=4)
    wanting = engine.add(prompt_of(6), GREEDY, STOP, wants_logits=True)
    engine.add(prompt_of(6), GREEDY, STOP)
    tokens, rows = [], []
    while progress := engine.step():
        for part in progress:
            if part.sequence is wanting and part.token_id is not None:
                tokens.append(part.token_id)
                assert part.logits is not None
                rows.append(part.logits)
            else:
                assert part.logits is None
    assert tokens == wanting.output_ids
    expected = tiny_engine().logits(wanting.token_ids[:-1])[5:]
    np.testing.assert_allclose(np.stack(rows), expected, rtol=1e-5, atol=1e-6)


def test_a_receiver_gets_each_token_and_can_end_the_text() -> None:
    got: list[int | None] = []

    def receive(progress: Progress) -> bool:
        got.append(progress.token_id)
        return len(got) == 5

    engine = tiny_engine(token_budget=2)
    sequence = engine.add(prompt_of(6), GREEDY, STOP, receive=receive)
    run_to_end(engine)
    assert got == alone(6, 0, "greedy")[:5]
    assert sequence.finish == "stop"
    assert free_pages(engine) == list(engine.pages.capacities)


def test_logits_wait_for_state() -> None:
    engine = tiny_engine(sequences=1)
    running, waiting = (engine.add(prompt_of(6, seed), GREEDY, STOP) for seed in range(2))
    engine.step()
    np.testing.assert_allclose(
        engine.logits(prompt_of(9)), tiny_engine().logits(prompt_of(9)), rtol=1e-5, atol=1e-6
    )
    assert running.output_ids == alone(6, 0, "greedy")
    assert waiting.output_ids == alone(6, 1, "greedy")


def test_logits_beside_a_running_sequence_disturb_nothing() -> None:
    engine = tiny_engine(sequences=2)
    running = engine.add(prompt_of(6), GREEDY, STOP)
    engine.step()
    engine.logits(prompt_of(40))
    assert len(running.output_ids) == 2  # it goes on beside them
    run_to_end(engine)
    assert running.output_ids == alone(6, 0, "greedy")


def test_seed_and_position_decide_not_the_number_of_draws() -> None:
    # Gone on from the middle as a prompt, the text is the same: position, not count, is the key.
    whole = alone(10, 0, "seeded")
    plain = replace(SEEDED, presence_penalty=0.0)
    text = tokens_alone(prompt_of(10), plain)
    resumed = tokens_alone(prompt_of(10) + text[:6], plain, StopConditions(max_tokens=10))
    assert resumed == text[6:]
    assert tokens_alone(prompt_of(10), replace(SEEDED, seed=8)) != whole
