"""/v1/completions, asked by OpenAI's own client; the oracle is the same model without HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest

from firstlight.engine.sampler import log_probabilities
from firstlight.language_model import LanguageModel
from tests.server.conftest import MODEL
from tests.support.token_sources import EngineSource

GREEDY: Any = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": 8,
    "extra_body": {"ignore_eos": True},
}


def expected(oracle: LanguageModel, prompt: str | list[int], **parameters: Any) -> Any:
    settings = {"max_tokens": 8, "temperature": 0.0, "ignore_end": True, **parameters}
    return oracle.generate(prompt, **settings)


@pytest.mark.parametrize("kind", ["text", "ids", "texts", "lists of ids"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_prompt(
    client: openai.OpenAI, oracle: LanguageModel, kind: str, stream: bool
) -> None:
    texts = ["The first", "and a second, longer one"]
    ids = [oracle.encode(text) for text in texts]
    prompt: Any = {"text": texts[0], "ids": ids[0], "texts": texts, "lists of ids": ids}[kind]
    wanted = [expected(oracle, each).text for each in texts]
    wanted = wanted if kind in ("texts", "lists of ids") else wanted[:1]
    got = [""] * len(wanted)
    if stream:
        for chunk in client.completions.create(**GREEDY, prompt=prompt, stream=True):
            for choice in chunk.choices:
                got[choice.index] += choice.text
    else:
        answer = client.completions.create(**GREEDY, prompt=prompt)
        got = [choice.text for choice in answer.choices]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids[: len(wanted)]))
        assert answer.usage.completion_tokens == 8 * len(wanted)
    assert got == wanted


def test_sixteen_tokens_unless_asked_otherwise(client: openai.OpenAI, source: EngineSource) -> None:
    client.completions.create(model=MODEL, prompt="x")
    assert source.requests[-1].max_tokens == 16


def test_choices_of_several_prompts_stand_in_order(client: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "temperature": 1.2, "seed": 3, "prompt": ["a", "b"]}
    both = client.completions.create(**asked, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    alone = client.completions.create(**{**asked, "prompt": "b"}, n=2)
    assert [choice.text for choice in both.choices[2:]] == [c.text for c in alone.choices]
    assert both.usage is not None and both.usage.prompt_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: openai.OpenAI, oracle: LanguageModel, stream: bool) -> None:
    asked = {**GREEDY, "prompt": "Once upon", "echo": True}
    if stream:
        chunks = client.completions.create(**asked, stream=True)
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    else:
        text = client.completions.create(**asked).choices[0].text
    assert text == "Once upon" + expected(oracle, "Once upon").text


def test_echo_of_token_ids_is_their_text(client: openai.OpenAI, oracle: LanguageModel) -> None:
    ids = oracle.encode("Once upon")
    answer = client.completions.create(**GREEDY, prompt=ids, echo=True)
    assert answer.choices[0].text == "Once upon" + expected(oracle, ids).text


@pytest.mark.parametrize("tokens", [0, 5])
def test_log_probabilities_of_the_prompt(
    client: openai.OpenAI, oracle: LanguageModel, tokens: int
) -> None:
    prompt = "Stars are born."
    asked = {**GREEDY, "max_tokens": tokens, "prompt": prompt, "echo": True, "logprobs": 2}
    (choice,) = client.completions.create(**asked).choices
    generation = expected(oracle, prompt, max_tokens=tokens)
    ids = [*oracle.encode(prompt), *generation.token_ids]
    values = np.stack([log_probabilities(row) for row in oracle.logits(ids)])
    wanted = [float(values[i, token]) for i, token in enumerate(ids[1:])]
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert choice.text == prompt + generation.text
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[0] is None
    for row, top in zip(values, logprobs.top_logprobs[1:], strict=False):
        assert sorted(top.values()) == pytest.approx(np.sort(row)[-2:].tolist(), abs=1e-4)
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens[: len(prompt)]) == prompt
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[: len(prompt)] == list(range(len(prompt)))


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_the_output(
    client: openai.OpenAI, oracle: LanguageModel, stream: bool
) -> None:
    asked = {**GREEDY, "prompt": "Stars", "logprobs": 0}
    if stream:
        chunks = client.completions.create(**asked, stream=True)
        parts = [c.logprobs for chunk in chunks for c in chunk.choices if c.logprobs]
    else:
        parts = [client.completions.create(**asked).choices[0].logprobs]
    values = [value for part in parts for value in part.token_logprobs]
    wanted = expected(oracle, "Stars", log_probabilities=0).log_probabilities
    assert values == pytest.approx(wanted, abs=1e-4)
    assert all(part.top_logprobs is None for part in parts)


def test_nothing_but_the_count_of_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="four", max_tokens=0)
    assert answer.choices[0].text == ""
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 0)


def test_the_context_ends_a_text(client: openai.OpenAI) -> None:
    prompt = "x" * 500  # of 512
    answer = client.completions.create(**{**GREEDY, "max_tokens": 1000}, prompt=prompt)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 13
