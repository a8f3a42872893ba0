"""A generation as its user sees it, on a tiny model whose tokens are pieces of text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import DeviceError, RequestError
from tests.support.tiny_engine import (
    GREEDY,
    SEEDED,
    VOCABULARY,
    PieceTokenizer,
    free_pages,
    prompt_of,
    random_tensors,
    run_to_end,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)
from tests.support.tiny_generation import LONG, PIECES, TOKENIZER, generation

# Pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_pieces_make_up_the_text_and_no_character_is_torn(seed: int) -> None:
    sampling = SamplingParameters(temperature=3.0, seed=seed)
    it = generation(sampling=sampling)
    pieces = list(it)
    tokens = tokens_alone(prompt_of(6), sampling, LONG)
    assert it.token_ids == tokens
    assert it.text == "".join(piece.text for piece in pieces)
    assert it.text == b"".join(PIECES[token] for token in tokens).decode(errors="replace")
    assert [piece.token_id for piece in pieces if piece.token_id is not None] == tokens
    assert all(piece.token_id is not None for piece in pieces[:-1])
    assert it.finish_reason == "length"


def test_some_of_these_texts_hold_back_bytes() -> None:
    texts = [
        list(generation(sampling=SamplingParameters(temperature=3.0, seed=seed)))
        for seed in range(12)
    ]
    assert any(piece.text == "" for pieces in texts for piece in pieces)


def test_half_a_character_at_the_end_comes_in_a_closing_piece() -> None:
    half = PIECES.index(b"\xe5")
    sampling = SamplingParameters(logit_bias={half: 1e4})
    it = generation(sampling=sampling, stop=StopConditions(max_tokens=1))
    assert [(piece.text, piece.token_id) for piece in it] == [("", half), ("\ufffd", None)]


def test_half_a_character_before_an_end_token_comes_too() -> None:
    half, end = PIECES.index(b"\xe5"), 0
    sampling = SamplingParameters(logit_bias={half: 1000.0, end: 950.0}, frequency_penalty=100.0)
    it = generation(sampling=sampling, stop=StopConditions(30, frozenset({end})))
    assert [(piece.text, piece.token_id) for piece in it] == [("", half), ("\ufffd", None)]
    assert it.finish_reason == "stop"


def test_each_piece_comes_when_its_token_is_known() -> None:
    engine = tiny_engine()
    it = iter(generation(engine))
    for count in range(1, 8):
        next(it)
        (running,) = engine.scheduler
        assert len(running.output_ids) == count


def test_the_whole_can_be_asked_for_again_and_again() -> None:
    engine = tiny_engine()
    it = generation(engine)
    text, tokens, pieces = it.text, it.token_ids, list(it)
    steps = engine.step
    engine.step = lambda: pytest.fail("it has ended")  # type: ignore[method-assign]
    assert (it.text, it.token_ids, list(it), it.finish_reason) == (text, tokens, pieces, "length")
    engine.step = steps  # type: ignore[method-assign]
    assert len(tokens) == 30


def test_iterating_anew_starts_with_what_has_come() -> None:
    it = generation()
    first = iter(it)
    begun = [next(first) for _ in range(5)]
    second = iter(it)
    assert [next(second) for _ in range(5)] == begun
    rest = list(first)
    assert list(second) == rest
    assert list(it) == begun + rest


def test_an_end_token_is_no_part_of_it() -> None:
    tokens = tokens_alone(prompt_of(6), SEEDED, LONG)
    end = tokens[11]
    it = generation(stop=StopConditions(max_tokens=30, end_ids=frozenset({end})))
    assert it.token_ids == tokens[: tokens.index(end)]
    assert it.finish_reason == "stop"
    expected = b"".join(PIECES[token] for token in it.token_ids).decode(errors="replace")
    assert it.text == expected


def test_no_tokens_at_all() -> None:
    it = generation(stop=StopConditions(max_tokens=0))
    assert (it.text, it.token_ids, list(it), it.finish_reason) == ("", [], [], "length")
    assert it.timing.ended >= it.timing.started > 0


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    it = generation(tokenizer=None)
    assert it.token_ids == tokens_alone(prompt_of(6), SEEDED, LONG)
    assert it.text == ""


def test_timing_is_in_order() -> None:
    it = generation()
    assert it.timing.first_token == it.timing.ended == 0
    next(iter(it))
    assert it.timing.ended == 0
    assert it.text
    assert 0 < it.timing.started <= it.timing.first_token <= it.timing.ended


@pytest.mark.parametrize(
    ("prompt", "expected"), [([0], " a b"), ([60], "a b"), ([60, 1], " a b")], ids=str
)
def test_a_space_at_the_start_stays_where_there_is_text_before(
    prompt: list[int], expected: str
) -> None:
    class Spaced(PieceTokenizer):
        """Like SentencePiece: a space before every word, and none at the start of a text."""

        special_ids = frozenset({60})
        _leading_space = "drop one"

    # Bias makes every token "a", " b" in turn: the frequency penalty forbids to repeat.
    tokenizer = Spaced([b" a", b" b"] + [b"?"] * (VOCABULARY - 2))
    sampling = SamplingParameters(logit_bias={0: 1000.0, 1: 900.0}, frequency_penalty=100.0)
    stop = StopConditions(max_tokens=2)
    it = generation(prompt=prompt, sampling=sampling, stop=stop, tokenizer=tokenizer)
    tokens = it.token_ids
    assert set(tokens) <= {0, 1}
    assert it.text == "".join([" a", " b"][token] for token in tokens).removeprefix(
        "" if expected.startswith(" ") else " "
    )


# Stop strings ---------------------------------------------------------------------------


def test_every_stop_string_that_occurs_cuts_the_text() -> None:
    whole = generation()
    text, tokens = whole.text, whole.token_ids
    borders = {len(piece.text) for piece in whole}
    assert len(borders) > 1
    tried = 0
    for start in range(0, len(text) - 1, 3):
        for size in (1, 2, 5):
            stop = text[start : start + size]
            if "\ufffd" in stop:
                continue
            it = generation(stop=StopConditions(max_tokens=30, stop=(stop, "never comes")))
            end = text.index(stop)
            assert it.text == text[:end]
            assert it.finish_reason == "stop"
            # The tokens are those up to the one that completed the stop string.
            count = len(it.token_ids)
            assert it.token_ids == tokens[:count]
            shown = [TOKENIZER.decode(tokens[:n]) for n in (count - 1, count)]
            assert stop not in shown[0].rstrip("\ufffd")
            assert stop in shown[1]
            tried += 1
    assert tried > 20


def test_a_stop_string_across_tokens_is_never_shown_in_part() -> None:
    whole = generation()
    pieces = [piece.text for piece in whole if len(piece.text) > 0 and "\ufffd" not in piece.text]
    text = whole.text
    checked = 0
    for left, right in pairwise(pieces):
        stop = left[-1] + right[0]
        if stop not in text:
            continue
        it = generation(stop=StopConditions(max_tokens=30, stop=(stop,)))
        assert "".join(piece.text for piece in it) == text[: text.index(stop)]
        checked += 1
    assert checked > 10


def test_what_was_held_back_for_a_stop_string_comes_at_the_end() -> None:
    text = generation().text
    it = generation(stop=StopConditions(max_tokens=30, stop=(text[-2:] + "☃",)))
    assert it.text == text
    assert it.finish_reason == "length"


def test_a_stop_string_in_the_last_token_counts() -> None:
    texts = [piece.text for piece in generation() if piece.token_id is not None]
    befores = ["".join(texts[:count]) for count in range(len(texts))]
    # Texts of one whole token that stand nowhere before it.
    new = [n for n, text in enumerate(texts) if text.strip() and text not in befores[n] + text[:-1]]
    assert len(new) > 5
    for count in new:
        it = generation(stop=StopConditions(max_tokens=count + 1, stop=(texts[count],)))
        assert (it.text, it.finish_reason) == (befores[count], "stop")
        assert len(it.token_ids) == count + 1


def test_a_stop_string_that_only_the_last_flush_completes() -> None:
    # The text ends with half a character, which becomes U+FFFD when nothing more comes.
    half = PIECES.index(b"\xe5")
    sampling = SamplingParameters(logit_bias={half: 1e4})
    stop = StopConditions(max_tokens=1, stop=("\ufffd",))
    it = generation(sampling=sampling, stop=stop)
    assert (it.text, it.token_ids, it.finish_reason) == ("", [half], "stop")


# Ending early ---------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 1, 7])
def test_closing_frees_the_state_and_keeps_what_has_come(pieces: int) -> None:
    engine = tiny_engine(token_budget=4)
    whole = generation(tiny_engine())
    it = generation(engine)
    pulled = iter(it)
    come = [next(pulled) for _ in range(pieces)]
    it.close()
    assert free_pages(engine) == list(engine.pages.capacities)
    assert engine.step() == []
    assert list(it) == come == list(whole)[:pieces]
    assert it.finish_reason == "cancelled"
    assert list(pulled) == []
    ended = it.timing.ended
    it.close()
    assert ended == it.timing.ended > 0


def test_closing_after_the_end_changes_nothing() -> None:
    it = generation()
    text = it.text
    it.close()
    assert (it.text, it.finish_reason) == (text, "length")


def test_a_generation_that_nobody_holds_frees_its_state() -> None:
    engine = tiny_engine(sequences=2)
    for _ in generation(engine, prompt_of(9)):
        break
    generation(engine, prompt_of(5))  # never even begun
    it = iter(generation(engine))
    next(it)
    assert len(list(engine.scheduler)) == 1
    del it
    assert engine.step() == []
    assert free_pages(engine) == list(engine.pages.capacities)


def test_one_in_use_only_through_its_iterator_goes_on() -> None:
    it = iter(generation())
    assert len([piece for piece in it if piece.token_id is not None]) == 30


# Log probabilities ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, VOCABULARY])
def test_log_probabilities_are_the_models_own(count: int) -> None:
    it = generation(log_probabilities=count, stop=StopConditions(max_tokens=12))
    tokens = it.token_ids
    logits = tiny_engine().logits(prompt_of(6) + tokens[:-1])[5:].astype(np.float64)
    # The model's, whatever temperature and penalties do to the choice.
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        it.log_probabilities, expected[np.arange(12), tokens], rtol=0, atol=1e-5
    )
    for row, piece in zip(expected, it, strict=False):
        assert [each.token_id for each in piece.alternatives] == np.argsort(-row)[:count].tolist()
        np.testing.assert_allclose(
            [each.log_probability for each in piece.alternatives],
            np.sort(row)[::-1][:count],
            rtol=0,
            atol=1e-5,
        )


def test_log_probabilities_come_only_where_asked_for() -> None:
    it = generation()
    assert it.log_probabilities == []
    assert all(piece.log_probability is None and not piece.alternatives for piece in it)


@pytest.mark.parametrize("count", [-1, VOCABULARY + 1, 1.5, True, "3"])
def test_an_impossible_number_of_alternatives_is_refused(count: Any) -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match="log_probabilities"):
        generation(engine, log_probabilities=count)
    assert engine.step() == []


# Errors ---------------------------------------------------------------------------------


def test_an_error_comes_after_the_pieces_before_it() -> None:
    spec = tiny_spec()
    tensors = random_tensors(spec)
    sound = tokens_alone(prompt_of(6), SEEDED, LONG)
    # The first token that is new to the text breaks the model when it is read.
    fatal = next(token for token in sound if token not in prompt_of(6))
    tensors["embedding"][fatal] = np.nan
    engine = tiny_engine(tiny_decoder(spec, tensors), sequences=2)
    other = generation(engine, [token for token in range(9) if token != fatal], GREEDY)
    it = generation(engine)
    come = []
    with pytest.raises(DeviceError, match="the model's output: has a logit that is NaN"):
        come.extend(iter(it))
    for _ in range(2):
        with pytest.raises(DeviceError):
            _ = it.text
    assert it._sequence.output_ids == sound[: sound.index(fatal) + 1]
    try:
        run_to_end(engine)
        _ = other.text
    except DeviceError:  # it met the fatal token itself
        assert fatal in other._sequence.output_ids
    assert free_pages(engine) == list(engine.pages.capacities)


def test_a_refused_prompt_leaves_nothing_behind() -> None:
    engine = tiny_engine()
    for prompt in ([], [VOCABULARY], [0] * 65):
        with pytest.raises(RequestError):
            generation(engine, prompt)
    assert not list(engine.scheduler)
