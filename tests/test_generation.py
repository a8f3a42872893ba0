"""A generation as its user sees it, on a tiny model whose tokens are pieces of text."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstlight.checkpoint.generation import GenerationDefaults
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import DeviceError, RequestError, TokenizerError
from firstlight.generation import Generation
from firstlight.language_model import LanguageModel
from tests.support.tiny_engine import (
    GREEDY,
    SEEDED,
    VOCABULARY,
    PieceTokenizer,
    free_pages,
    prompt_of,
    random_tensors,
    run_to_end,
    shared_decoder,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)

# Letters, syllables, and halves of characters of two, three and four bytes.
_WORDS = ("the", "of", "and", "ing", "er", "ab", "bc", "abc", "ba", "aa", "\n", "é", "ñ", "ß")
PIECES = [
    *(letter.encode() for letter in "abcdefghijklmnopqrstuvw "),
    *(word.encode() for word in _WORDS),
    *(b"\xe5", b"\xa5\xbd", b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9", b"\xff"),
]
PIECES += [f" w{index}".encode() for index in range(VOCABULARY - len(PIECES))]
TOKENIZER = PieceTokenizer(PIECES)
LONG = StopConditions(max_tokens=30)


def generation(
    engine: Engine | None = None,
    prompt: list[int] | None = None,
    sampling: SamplingParameters = SEEDED,
    stop: StopConditions = LONG,
    log_probabilities: int | None = None,
    tokenizer: PieceTokenizer | None = TOKENIZER,
) -> Generation:
    return Generation(
        engine or tiny_engine(),
        tokenizer,
        prompt_of(6) if prompt is None else prompt,
        sampling,
        stop,
        log_probabilities,
    )


def language_model(
    engine: Engine | None = None,
    tokenizer: PieceTokenizer | TokenizerError = TOKENIZER,
    **defaults: Any,
) -> LanguageModel:
    engine = engine or tiny_engine()
    checkpoint: Any = SimpleNamespace(
        generation=GenerationDefaults(**defaults), location="tiny", licence=None
    )
    backend: Any = engine.decoder.ops
    return LanguageModel(checkpoint, engine.decoder.spec, tokenizer, engine, backend)


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


def test_each_piece_comes_when_its_token_is_known() -> None:
    engine = tiny_engine()
    it = iter(generation(engine))
    for count in range(1, 8):
        next(it)
        (running,) = engine._sequences
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
    assert len(engine._sequences) == 1
    del it
    assert engine.step() == []
    assert free_pages(engine) == list(engine.pages.capacities)


def test_one_in_use_only_through_its_iterator_goes_on() -> None:
    it = iter(generation())
    assert len([piece for piece in it if piece.token_id is not None]) == 30


# Several on one engine ------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=st.lists(st.integers(0, 3), max_size=60),
    sequences=st.integers(1, 4),
    token_budget=st.integers(1, 20),
)
def test_iterated_in_any_order_each_is_the_same_as_alone(
    turns: list[int], sequences: int, token_budget: int
) -> None:
    stop = StopConditions(max_tokens=12, stop=("b",))
    prompts = [prompt_of(length) for length in (6, 6, 11, 3)]
    samplings = [SEEDED, GREEDY, SEEDED, SEEDED]
    expected = [
        list(generation(tiny_engine(), prompt, sampling, stop))
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    engine = tiny_engine(sequences=sequences, token_budget=token_budget)
    all_of_them = [
        generation(engine, prompt, sampling, stop)
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    iterators = [iter(each) for each in all_of_them]
    got: list[list[Any]] = [[] for _ in iterators]
    for turn in turns:
        got[turn] += [piece for piece in [next(iterators[turn], None)] if piece is not None]
    for index, iterator in enumerate(iterators):
        got[index] += iterator
    assert got == expected
    assert [list(each) for each in all_of_them] == expected
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
    assert engine._sequences == []


# Through the model ----------------------------------------------------------------------


def test_ignore_end_goes_on_past_end_tokens_and_the_publishers_stop_strings() -> None:
    tokens = tokens_alone(prompt_of(6), GREEDY, LONG)
    model = language_model(stop_token_ids=(tokens[10],), stop_strings=("zzz",))
    first = tokens.index(tokens[10])
    stopped = model.generate(prompt_of(6), max_tokens=30)
    assert (stopped.token_ids, stopped.finish_reason) == (tokens[:first], "stop")
    ignoring = model.generate(prompt_of(6), max_tokens=30, ignore_end=True)
    assert (ignoring.token_ids, ignoring.finish_reason) == (tokens, "length")
    text = ignoring.text
    own = language_model(stop_strings=(text[3:5],))
    assert own.generate(prompt_of(6), max_tokens=30).text == text[: text.index(text[3:5])]
    assert own.generate(prompt_of(6), max_tokens=30, ignore_end=True).text == text


def test_a_prompt_may_be_text_or_ids() -> None:
    model = language_model()
    by_text = model.generate("abc", max_tokens=5)
    assert by_text.prompt_ids == [0, 1, 2]
    assert by_text.token_ids == model.generate(np.array([0, 1, 2]), max_tokens=5).token_ids  # type: ignore[arg-type]


def test_a_seed_repeats_a_text_and_none_is_drawn_anew() -> None:
    model = language_model(do_sample=True, temperature=3.0)
    first, second = (model.generate("abc", seed=5).token_ids[:30] for _ in range(2))
    assert first == second
    drawn = {tuple(model.generate("abc", max_tokens=20).token_ids) for _ in range(3)}
    assert len(drawn) == 3


def test_texts_need_a_tokenizer() -> None:
    model = language_model(tokenizer=TokenizerError("tiny", "it is broken", "Mend it"))
    assert len(model.generate([1, 2], max_tokens=3).token_ids) == 3
    with pytest.raises(TokenizerError):
        model.generate("abc")
    with pytest.raises(RequestError, match="needs a tokenizer"):
        model.generate([1], stop="x")


def test_logits_equal_the_engines() -> None:
    model = language_model(tiny_engine(shared_decoder()))
    np.testing.assert_array_equal(model.logits([1, 2, 3]), tiny_engine().logits([1, 2, 3]))
