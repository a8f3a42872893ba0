"""What `LanguageModel` adds to a generation, on a tiny model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from firstlight.checkpoint.generation import GenerationDefaults
from firstlight.engine.engine import Engine
from firstlight.errors import RequestError, TokenizerError
from firstlight.language_model import LanguageModel
from tests.support.tiny_engine import (
    GREEDY,
    PieceTokenizer,
    prompt_of,
    shared_decoder,
    tiny_engine,
    tokens_alone,
)
from tests.support.tiny_generation import LONG, TOKENIZER


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
