"""/v1/chat/completions, asked by OpenAI's own client; the oracle is the same model without HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from firstlight.language_model import LanguageModel
from tests.server.conftest import MODEL
from tests.support.tiny_chat import token_id
from tests.support.token_sources import EngineSource

MESSAGES: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is first light?"},
]
GREEDY: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
LONG: Any = {**GREEDY, "extra_body": {"ignore_eos": True}}


def expected(oracle: LanguageModel, **parameters: Any) -> Any:
    return oracle.chat(MESSAGES, **{"max_tokens": 12, "temperature": 0.0, **parameters})


def streamed(client: openai.OpenAI, **parameters: Any) -> tuple[list[str], list[Any]]:
    """Text of each choice, and all chunks."""
    chunks = list(client.chat.completions.create(**parameters, stream=True))
    texts = [""] * (parameters.get("n") or 1)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, chunks


def test_an_answer_is_what_the_model_says(client: openai.OpenAI, oracle: LanguageModel) -> None:
    answer = client.chat.completions.create(**LONG)
    generation = expected(oracle, ignore_end=True)
    (choice,) = answer.choices
    assert choice.message.content == generation.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.model == MODEL
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(generation.prompt_ids)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == len(generation.prompt_ids) + 12


def test_a_stream_says_the_same(client: openai.OpenAI, oracle: LanguageModel) -> None:
    (text,), chunks = streamed(client, **LONG, stream_options={"include_usage": True})
    assert text == expected(oracle, ignore_end=True).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_comes_only_where_asked_for(client: openai.OpenAI) -> None:
    _, chunks = streamed(client, **LONG)
    assert all(chunk.choices for chunk in chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_token_is_no_text(
    client: openai.OpenAI, oracle: LanguageModel, stream: bool
) -> None:
    biased = {"logit_bias": {str(token_id("<|end|>")): 100}}
    if stream:
        (text,), chunks = streamed(client, **GREEDY, **biased)
        finish = chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(**GREEDY, **biased)
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == ("", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_choices_differ_and_repeat(client: openai.OpenAI, stream: bool) -> None:
    sampled = {**LONG, "temperature": 1.5, "seed": 5, "n": 3}

    def texts() -> list[str]:
        if stream:
            return streamed(client, **sampled)[0]
        answer = client.chat.completions.create(**sampled)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 36
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, source: EngineSource) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0.7,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={"7": -100, "8": 2.5},
        seed=-1,
        max_completion_tokens=3,
        user="somebody",
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "priority": 3,
            "something_unknown": {"a": 1},
        },
    )
    request = source.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 40)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.05, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.25)
    assert sampling.logit_bias == {7: -100.0, 8: 2.5}
    assert sampling.seed == (1 << 64) - 1
    assert (request.max_tokens, request.end_ids, request.priority) == (3, [], 3)


def test_what_is_not_said_is_as_the_publisher_has_it(
    client: openai.OpenAI, source: EngineSource
) -> None:
    client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
    sampling = source.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert source.requests[-1].end_ids == [token_id("<|end|>")]
    seeds = set()
    for _ in range(3):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
        seeds.add(source.requests[-1].sampling.seed)
    assert len(seeds) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, oracle: LanguageModel, stream: bool) -> None:
    pieces = list(expected(oracle, ignore_end=True, log_probabilities=3))
    entries = []
    if stream:
        for chunk in streamed(client, **LONG, logprobs=True, top_logprobs=3)[1]:
            for choice in chunk.choices:
                entries += choice.logprobs.content if choice.logprobs else []
    else:
        answer = client.chat.completions.create(**LONG, logprobs=True, top_logprobs=3)
        assert answer.choices[0].logprobs is not None
        entries = answer.choices[0].logprobs.content or []
    assert [entry.logprob for entry in entries] == pytest.approx(
        [piece.log_probability for piece in pieces if piece.token_id is not None], abs=1e-4
    )
    for entry, piece in zip(entries, pieces, strict=False):
        likeliest = [other.log_probability for other in piece.alternatives]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(likeliest, abs=1e-4)
        assert entry.top_logprobs[0].bytes == entry.bytes  # greedy: the likeliest was taken
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_log_probabilities_of_the_chosen_alone(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**LONG, logprobs=True)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert len(content) == 12
    assert all(entry.top_logprobs == [] for entry in content)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: openai.OpenAI, oracle: LanguageModel, stream: bool) -> None:
    whole = expected(oracle, ignore_end=True).text
    stop = whole[6:8]
    cut = whole[: whole.index(stop)]
    asked = {**LONG, "stop": [stop, "never to be seen"]}
    if stream:
        (text,), chunks = streamed(client, **asked)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        answer = client.chat.completions.create(**asked)
        text = answer.choices[0].message.content or ""
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens < 12
    assert text == cut


def test_parts_of_text_are_joined(client: openai.OpenAI, source: EngineSource) -> None:
    parts: Any = [{"type": "text", "text": "What is"}, {"type": "text", "text": "first light?"}]
    client.chat.completions.create(
        model=MODEL, max_tokens=1, messages=[{"role": "user", "content": parts}]
    )
    first = source.requests[-1].prompt_ids
    client.chat.completions.create(
        model=MODEL,
        max_tokens=1,
        messages=[{"role": "user", "content": "What is\nfirst light?"}],
    )
    assert source.requests[-1].prompt_ids == first


def test_a_developer_is_the_system(client: openai.OpenAI, source: EngineSource) -> None:
    prompts = []
    for role in ("developer", "system"):
        messages: Any = [{"role": role, "content": "x"}, {"role": "user", "content": "y"}]
        client.chat.completions.create(model=MODEL, max_tokens=1, messages=messages)
        prompts.append(source.requests[-1].prompt_ids)
    assert prompts[0] == prompts[1]


def test_many_at_once_through_the_async_client(
    client: openai.OpenAI, oracle: LanguageModel
) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=client.base_url, api_key="none", max_retries=0
        ) as many:

            async def ask(number: int) -> str:
                stream = await many.chat.completions.create(
                    **{**LONG, "messages": [{"role": "user", "content": f"number {number}"}]},
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(ask, range(12)))

    texts = asyncio.run(ask_all())
    for number, text in enumerate(texts):
        asked = [{"role": "user", "content": f"number {number}"}]
        generation = oracle.chat(asked, max_tokens=12, temperature=0.0, ignore_end=True)
        assert text == generation.text
