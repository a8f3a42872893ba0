"""What the engine keeps of a sequence: bounded, cut back, made anew, rounded."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import StopConditions
from firstlight.model.rope_spec import DynamicScaling, LongRopeScaling
from tests.support.tiny_engine import (
    CONTEXT_LENGTH,
    GREEDY,
    PAGE_TOKENS,
    SEEDED,
    VOCABULARY,
    WINDOW,
    free_pages,
    prompt_of,
    run_to_end,
    shared_decoder,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)

STOP = StopConditions(max_tokens=16)


# Pages ----------------------------------------------------------------------------------


def test_sliding_layers_hold_a_bounded_number_of_pages() -> None:
    engine = tiny_engine(context_length=400, token_budget=8)
    full, sliding = (
        next(index for index, group in enumerate(engine.pages.groups) if group.window == window)
        for window in (None, WINDOW)
    )
    sequence = engine.add(prompt_of(100), GREEDY, StopConditions())
    held = []
    while engine.step():
        if sequence.finish is None:
            held.append((sequence.pages.held(full), sequence.pages.held(sliding)))
    assert [pages for pages, _ in held] == sorted(pages for pages, _ in held)
    assert held[-1][0] == 400 // PAGE_TOKENS
    # Between steps: the 5 positions that the next one sees lie on two pages.
    assert max(pages for _, pages in held) == 2
    assert engine.pages.capacities[sliding] == 4
    assert sequence.length == 401


def test_long_texts_do_not_depend_on_where_pages_lie() -> None:
    # The second sequence gets pages that were used before, in another order.
    engine = tiny_engine(sequences=3, token_budget=5)
    for length in (20, 7, 33):
        engine.add(prompt_of(length), SEEDED, StopConditions(max_tokens=length % 11))
    run_to_end(engine)
    again = engine.add(prompt_of(30), GREEDY, StopConditions(max_tokens=30))
    run_to_end(engine)
    assert again.output_ids == tokens_alone(prompt_of(30), stop=StopConditions(max_tokens=30))


@pytest.mark.parametrize("length", [10, 11, 15, 20, 24, 25, 26, 27])
@pytest.mark.parametrize("windows", [(None, WINDOW, WINDOW), (None, None)], ids=["mixed", "full"])
def test_cut_back_and_gone_on_equals_an_undisturbed_run(
    windows: tuple[int | None, ...], length: int
) -> None:
    """What speculation does: a guess turns out wrong, its state is forgotten, the text goes on."""
    decoder = tiny_decoder(tiny_spec(windows))
    engine = tiny_engine(decoder)
    sequence = engine.add(prompt_of(10), GREEDY, StopConditions(max_tokens=30))
    while sequence.computed < 27:
        engine.step()
    undisturbed = list(sequence.token_ids)

    def go_back(new_token: int) -> None:
        """Keep the first `length` tokens and put another one behind them."""
        if engine.pages.can_cut(sequence.pages, length):
            engine.pages.cut(sequence.pages, length)
            sequence.computed = length
        else:
            engine.pages.release(sequence.pages)
            sequence.computed = 0
        sequence.token_ids[length:] = [new_token]
        sequence.output_ids[:] = sequence.token_ids[10:]

    go_back((undisturbed[length] + 1) % VOCABULARY)
    for _ in range(2):
        engine.step()
    guessed = sequence.token_ids
    expected = tokens_alone(
        guessed[: length + 1], stop=StopConditions(max_tokens=2), decoder=decoder
    )
    assert guessed[length + 1 :] == expected
    assert guessed[: length + 3] != undisturbed[: length + 3]
    go_back(undisturbed[length])
    run_to_end(engine)
    assert sequence.output_ids == tokens_alone(
        prompt_of(10), stop=StopConditions(max_tokens=30), decoder=decoder
    )
    assert free_pages(engine) == list(engine.pages.capacities)


def test_how_far_a_sequence_can_be_cut_back() -> None:
    for windows, possible in (
        ((None, None), list(range(28))),
        # Page 5 and what lies behind it are held; position 25 sees positions from 20 on.
        ((None, WINDOW, WINDOW), [0, 25, 26, 27]),
    ):
        engine = tiny_engine(tiny_decoder(tiny_spec(windows)))
        sequence = engine.add(prompt_of(10), GREEDY, StopConditions(max_tokens=30))
        while sequence.computed < 27:
            engine.step()
        assert [n for n in range(28) if engine.pages.can_cut(sequence.pages, n)] == possible


def test_the_longest_sequence_fits_beside_others_of_its_kind() -> None:
    engine = tiny_engine(shared_decoder(), CONTEXT_LENGTH, sequences=3, token_budget=11)
    sequences = [engine.add(prompt_of(30, seed), GREEDY, StopConditions()) for seed in range(3)]
    run_to_end(engine)
    assert {each.length for each in sequences} == {CONTEXT_LENGTH + 1}


def test_models_without_a_full_or_without_a_sliding_layer() -> None:
    for windows in ((None,), (WINDOW,), (3, WINDOW), (1, 2)):
        decoder = tiny_decoder(tiny_spec(windows))
        texts = []
        for budget in (3, 512):
            engine = tiny_engine(decoder, token_budget=budget)
            sequence = engine.add(prompt_of(20), GREEDY, StopConditions(max_tokens=30))
            run_to_end(engine)
            texts.append(sequence.output_ids)
            assert free_pages(engine) == list(engine.pages.capacities)
        assert texts[0] == texts[1]


def test_a_window_hides_what_lies_before_it() -> None:
    # With one layer of window 6 the last position sees exactly the last 6 tokens.
    decoder = tiny_decoder(tiny_spec((WINDOW,)))
    prompt = prompt_of(20)
    changed = {distance: list(prompt) for distance in (WINDOW, WINDOW + 1)}
    for distance, tokens in changed.items():
        tokens[-distance] = (tokens[-distance] + 1) % VOCABULARY
    engine = tiny_engine(decoder, token_budget=4)
    last = engine.logits(prompt)[-1]
    np.testing.assert_array_equal(engine.logits(changed[WINDOW + 1])[-1], last)
    assert np.abs(engine.logits(changed[WINDOW])[-1] - last).max() > 1e-3


# Rotary frequencies that depend on the length -------------------------------------------

_LONG_ROPE = LongRopeScaling((1.0, 1.1, 1.2, 1.3), (1.0, 3.0, 6.0, 12.0), 20, 1.2)


@pytest.mark.parametrize("token_budget", [3, 512])
@pytest.mark.parametrize("prompt_length", [5, 19, 20])
def test_long_rope_makes_the_state_anew(prompt_length: int, token_budget: int) -> None:
    decoder = tiny_decoder(tiny_spec(scaling=_LONG_ROPE))
    prompt = prompt_of(prompt_length)
    engine = tiny_engine(decoder, token_budget=token_budget, sequences=2)
    company = engine.add(prompt_of(9), GREEDY, StopConditions(max_tokens=8))
    sequence = engine.add(prompt, GREEDY, StopConditions(max_tokens=40), wants_logits=True)
    rows = []
    replayed_at = []
    while progress := engine.step():
        rows += [part.logits for part in progress if part.logits is not None]
        if sequence.finish is None and sequence.output_ids and sequence.computed == 0:
            replayed_at.append(sequence.length)
    assert sequence.finish == "length"
    assert replayed_at == [21]
    assert free_pages(engine) == list(engine.pages.capacities)
    assert company.output_ids == tokens_alone(
        prompt_of(9), stop=StopConditions(max_tokens=8), decoder=decoder
    )
    # Up to 20 tokens short factors rule: nothing was longer. From 21 on all is as if the first 21
    # tokens had been a prompt, whose length asks for the long factors at every position.
    fresh = tiny_engine(decoder)
    short = fresh.logits(sequence.token_ids[:20])
    np.testing.assert_allclose(
        np.stack(rows[: 21 - prompt_length]), short[prompt_length - 1 :], rtol=1e-4, atol=1e-5
    )
    long = fresh.logits(sequence.token_ids[:-1])
    np.testing.assert_allclose(
        np.stack(rows[21 - prompt_length :]), long[20:], rtol=1e-4, atol=1e-5
    )
    assert np.abs(short - long[:20]).max() > 0.1  # the factors matter


def test_long_rope_without_replay_would_be_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder(tiny_spec(scaling=_LONG_ROPE))
    stop = StopConditions(max_tokens=40)
    right = tokens_alone(prompt_of(10), stop=stop, decoder=decoder)
    monkeypatch.setattr(Engine, "_must_replay", lambda *_: False)
    wrong = tokens_alone(prompt_of(10), stop=stop, decoder=decoder)
    assert right[:11] == wrong[:11]  # the 21st token is still chosen from short factors
    assert right != wrong


@pytest.mark.parametrize("prompt_length", [21, 40])
def test_a_long_prompt_needs_no_replay(prompt_length: int) -> None:
    decoder = tiny_decoder(tiny_spec(scaling=_LONG_ROPE))
    engine = tiny_engine(decoder, token_budget=7)
    sequence = engine.add(prompt_of(prompt_length), GREEDY, STOP)
    computed = 0
    while engine.step():
        assert sequence.computed >= computed
        computed = sequence.computed
    long = tiny_engine(decoder).logits(sequence.token_ids[:-1])
    assert long[prompt_length - 1 :].argmax(-1).tolist() == sequence.output_ids


def test_replay_at_the_last_token_does_not_happen() -> None:
    engine = tiny_engine(tiny_decoder(tiny_spec(scaling=_LONG_ROPE)))
    sequence = engine.add(prompt_of(15), GREEDY, StopConditions(max_tokens=6))
    run_to_end(engine)
    assert sequence.length == 21
    assert sequence.finish == "length"
    assert free_pages(engine) == list(engine.pages.capacities)


@pytest.mark.parametrize("token_budget", [4, 512])
def test_dynamic_frequencies_follow_the_prompt_and_then_each_position(token_budget: int) -> None:
    decoder = tiny_decoder(tiny_spec(scaling=DynamicScaling(4.0, 16)))
    prompt = prompt_of(24)
    engine = tiny_engine(decoder, token_budget=token_budget)
    sequence = engine.add(prompt, GREEDY, STOP, wants_logits=True)
    rows = []
    while progress := engine.step():
        rows += [part.logits for part in progress if part.logits is not None]
    np.testing.assert_allclose(
        rows[0], tiny_engine(decoder).logits(prompt)[-1], rtol=1e-5, atol=1e-6
    )
    # The same tokens as one prompt have other frequencies, so the state was not made anew.
    whole = tiny_engine(decoder).logits(sequence.token_ids[:-1])
    assert np.abs(whole[-1] - rows[-1]).max() > 1e-3
    assert sequence.output_ids == tokens_alone(prompt, decoder=decoder)


# State dtype ----------------------------------------------------------------------------


def test_bfloat16_state_is_close() -> None:
    exact = tiny_engine().logits(prompt_of(50))
    rounded = tiny_engine(state_dtype="bfloat16").logits(prompt_of(50))
    # Keys and values keep 8 bits: relative errors of 2^-9 each, of random sign, in three layers.
    error = np.abs(rounded - exact)
    assert 1e-4 < error.max() < 0.05 * np.abs(exact).max()
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(exact**2))


def test_bfloat16_state_does_not_depend_on_chunks() -> None:
    results = [
        tiny_engine(state_dtype="bfloat16", token_budget=budget).logits(prompt_of(50))
        for budget in (3, 512)
    ]
    # A rounding of the float32 sums before may tip a bfloat16, so a little more than float32's.
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=0.02)


def test_bfloat16_state_generates_and_returns_its_pages() -> None:
    engine = tiny_engine(state_dtype="bfloat16", token_budget=5)
    sequence = engine.add(prompt_of(12), GREEDY, StopConditions(max_tokens=30))
    run_to_end(engine)
    assert len(sequence.output_ids) == 30
    assert free_pages(engine) == list(engine.pages.capacities)
