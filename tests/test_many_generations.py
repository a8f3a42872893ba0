"""The Python API for many prompts: at once, in asynchronous code, and their probabilities."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from firstlight.engine.sampler import log_probabilities
from firstlight.errors import DeviceError, RequestError
from tests.support.tiny_engine import (
    GREEDY,
    free_pages,
    prompt_of,
    random_tensors,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)
from tests.support.tiny_generation import LONG
from tests.test_language_model import language_model


def test_many_prompts_go_on_together() -> None:
    engine = tiny_engine(sequences=8)
    model = language_model(engine)
    prompts = [prompt_of(length) for length in (3, 9, 1, 20)]
    generations = model.generate_many(prompts, max_tokens=30)
    next(iter(generations[2]))
    assert [len(each.pieces()) for each in generations] == [1, 1, 1, 1]
    assert [each.token_ids for each in generations] == [
        tokens_alone(prompt, GREEDY, LONG) for prompt in prompts
    ]
    assert engine.statistics().steps == 30


def test_texts_and_a_seed_for_each() -> None:
    model = language_model(tiny_engine(sequences=2))
    texts = ["abc", "bca", "abc"]
    found = model.generate_many(texts, max_tokens=12, temperature=2.0, seed=4)
    alone = [model.generate(text, max_tokens=12, temperature=2.0, seed=4).text for text in texts]
    assert [each.text for each in found] == alone


def test_where_one_prompt_is_refused_none_is_begun() -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError):
        language_model(engine).generate_many([[1, 2], []])
    assert engine.step() == []
    assert not list(engine.scheduler)


# Streams ---------------------------------------------------------------------------------


async def all_pieces(model: Any, prompt: Any, **parameters: Any) -> list[int]:
    return [
        piece.token_id
        async for piece in model.stream(prompt, **parameters)
        if piece.token_id is not None
    ]


def test_streams_at_once() -> None:
    engine = tiny_engine(sequences=5)
    model = language_model(engine)
    prompts = [prompt_of(length) for length in (3, 9, 1, 20, 5, 6, 30)]

    async def run() -> list[list[int]]:
        return await asyncio.gather(
            *(all_pieces(model, prompt, max_tokens=30) for prompt in prompts)
        )

    expected = [tokens_alone(prompt, GREEDY, LONG) for prompt in prompts]
    assert asyncio.run(run()) == expected
    assert asyncio.run(run()) == expected  # in another loop, with another thread
    assert free_pages(engine) == list(engine.pages.capacities)


def test_the_loop_is_free_while_tokens_are_computed() -> None:
    engine = tiny_engine()
    step = engine.step

    def slow_step() -> Any:
        time.sleep(0.01)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]

    async def run() -> int:
        ticks = 0
        task = asyncio.create_task(all_pieces(language_model(engine), [1, 2], max_tokens=20))
        while not task.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    assert asyncio.run(run()) > 100


def test_leaving_a_stream_ends_it() -> None:
    engine = tiny_engine(sequences=2)
    model = language_model(engine)

    async def run() -> None:
        other = asyncio.create_task(all_pieces(model, [3], max_tokens=40))
        async with aclosing(model.stream([1, 2], max_tokens=None)) as pieces:  # type: ignore[type-var]
            async for _ in pieces:
                break
        await other

    asyncio.run(run())
    _wait_for_the_thread(model)
    assert not list(engine.scheduler)
    assert free_pages(engine) == list(engine.pages.capacities)
    assert engine.statistics().output_tokens < 40 + 60


def _wait_for_the_thread(model: Any) -> None:
    thread = model._driver._thread
    if thread is not None:
        thread.join(10)


def test_a_request_that_is_refused_fails_alone() -> None:
    model = language_model()

    async def run() -> tuple[Any, ...]:
        return tuple(
            await asyncio.gather(
                all_pieces(model, [1], max_tokens=5),
                all_pieces(model, []),
                all_pieces(model, [1], top_p=7),
                return_exceptions=True,
            )
        )

    good, empty, wrong = asyncio.run(run())
    assert len(good) == 5
    assert isinstance(empty, RequestError)
    assert isinstance(wrong, RequestError)


def test_an_error_in_a_stream_comes_after_its_pieces() -> None:
    spec = tiny_spec()
    tensors = random_tensors(spec)
    tokens = tokens_alone(prompt_of(6), GREEDY, LONG)
    at = next(
        index
        for index, token in enumerate(tokens)
        if index > 1 and token not in [*prompt_of(6), *tokens[:index]]
    )
    tensors["embedding"][tokens[at]] = np.nan
    model = language_model(tiny_engine(tiny_decoder(spec, tensors)))

    async def run() -> list[int | None]:
        found = []
        with pytest.raises(DeviceError):
            async for piece in model.stream(prompt_of(6), max_tokens=30):
                found.append(piece.token_id)
        return found

    assert asyncio.run(run()) == tokens[: at + 1]


def test_a_step_that_fails_ends_all_streams_and_the_next_one_works() -> None:
    engine = tiny_engine(sequences=2)
    model = language_model(engine)
    step, failures = engine.step, [True]

    def failing_step() -> Any:
        if failures:
            failures.pop()
            raise MemoryError
        return step()

    engine.step = failing_step  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        asyncio.run(all_pieces(model, [1], max_tokens=5))
    assert len(asyncio.run(all_pieces(model, [1], max_tokens=5))) == 5


def test_streams_beside_generations_in_another_thread() -> None:
    model = language_model(tiny_engine(sequences=3))
    found: list[list[int]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(model.generate(prompt_of(9), max_tokens=30).token_ids)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    streamed = asyncio.run(all_pieces(model, prompt_of(6), max_tokens=30))
    for thread in threads:
        thread.join(30)
    assert streamed == tokens_alone(prompt_of(6), GREEDY, LONG)
    assert found == [tokens_alone(prompt_of(9), GREEDY, LONG)] * 3


# Probabilities of texts --------------------------------------------------------------------


@pytest.mark.parametrize("token_budget", [3, 512])
def test_log_probabilities_of_texts(token_budget: int) -> None:
    engine = tiny_engine(sequences=2, token_budget=token_budget)
    model = language_model(engine)
    texts = [prompt_of(length) for length in (1, 40, 7)]
    scored = model.logprobs(texts, likeliest=3)
    for tokens, found in zip(texts, scored, strict=True):
        expected = log_probabilities(model.logits(tokens))
        assert found.token_ids == tokens
        of_tokens = expected[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(found.log_probabilities, of_tokens, rtol=1e-4, atol=1e-5)
        assert found.log_probability == pytest.approx(float(of_tokens.sum()), rel=1e-4)
        for score, row in zip(found.scores, expected, strict=False):
            best = np.argsort(-row)[:3]
            assert [token for token, _ in score.likeliest] == best.tolist()
            np.testing.assert_allclose(
                [value for _, value in score.likeliest], row[best], rtol=1e-4, atol=1e-5
            )
    assert free_pages(engine) == list(engine.pages.capacities)


def test_log_probabilities_of_one_that_is_too_long() -> None:
    engine = tiny_engine(context_length=8)
    with pytest.raises(RequestError, match="9 tokens"):
        language_model(engine).logprobs([prompt_of(5), prompt_of(9)])
    assert not list(engine.scheduler)
