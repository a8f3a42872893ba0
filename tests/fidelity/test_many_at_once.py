"""32 requests alone, and then together in any order, with everything that an engine does to serve
many at once: prefixes shared, prompts in chunks, guesses, too few pages. No token may differ."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Sequence
from firstlight.model.decoder import Decoder
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.tiny_models import prompt

PAGE_TOKENS = 16
CONTEXT_LENGTH = 256
NAMES = ("llama", "gemma3", "qwen3-mixed", "llama-dynamic", "phi3-long", "deepseek_v4")


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    sampling: SamplingParameters
    max_tokens: int
    priority: int


@cache
def requests() -> tuple[Request, ...]:
    """Prompts that begin alike or not, some that say everything twice, greedy and drawn."""
    generator = random.Random(4)
    trunks = [prompt(length, seed=length) for length in (3, 40, 90)]
    made = []
    for index in range(32):
        tokens = generator.choice(trunks)[: generator.choice((20, 90))]
        tokens = tokens + prompt(generator.randint(1, 30), seed=generator.choice((7, index)))
        if index % 4 == 0:
            tokens = (tokens + tokens)[:150]
        sampling = SamplingParameters()
        if index % 2:
            sampling = SamplingParameters(
                temperature=0.6, top_p=0.9, repetition_penalty=1.1, seed=index % 6
            )
        made.append(
            Request(tuple(tokens), sampling, generator.randint(5, 60), generator.choice((0, 0, 1)))
        )
    return tuple(made)


def alone(decoder: Decoder, request: Request) -> list[int]:
    engine = Engine(decoder, CONTEXT_LENGTH, page_tokens=PAGE_TOKENS, prefix_caching=False)
    sequence = add(engine, request)
    while engine.step():
        pass
    return sequence.output_ids


def add(engine: Engine, request: Request, **more: Any) -> Sequence:
    return engine.add(
        request.prompt,
        request.sampling,
        StopConditions(max_tokens=request.max_tokens),
        priority=request.priority,
        **more,
    )


@cache
def all_alone(decoder: Decoder) -> list[list[int]]:
    return [alone(decoder, request) for request in requests()]


def few_pages(decoder: Decoder) -> int:
    """Bytes of state for one sequence of full length and half another."""
    engine = Engine(decoder, CONTEXT_LENGTH, page_tokens=PAGE_TOKENS, token_budget=48)
    return int(1.5 * sum(pages.nbytes for layer in engine._state for pages in layer))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_together_as_alone(tiny: Callable[..., TinyCheckpoint], name: str, seed: int) -> None:
    decoder = tiny(name).decoder("cpu")
    expected = all_alone(decoder)
    generator = random.Random(seed)
    engine = Engine(
        decoder,
        CONTEXT_LENGTH,
        sequences=12,
        token_budget=48,
        prompt_budget=generator.choice((9, 24)),
        page_tokens=PAGE_TOKENS,
        state_memory=few_pages(decoder),
        speculation=("auto", 5)[seed],
    )
    order = list(range(32))
    generator.shuffle(order)
    added: dict[int, Sequence] = {}
    while order or any(each.finish is None for each in added.values()):
        for _ in range(min(len(order), generator.choice((0, 0, 1, 4)))):
            index = order.pop()
            added[index] = add(engine, requests()[index])
        if added and generator.random() < 0.1:  # as a replica that fails hands its sequences on
            index = generator.choice(list(added))
            if added[index].finish is None:
                before = added[index]
                engine.remove(before)
                added[index] = add(engine, requests()[index], output_ids=before.output_ids)
        engine.step()
    assert [added[index].output_ids for index in range(32)] == expected
    done = engine.statistics()
    assert (done.running, done.waiting, done.free_pages) == (0, 0, done.pages)
    assert done.preemptions > 0
    assert done.cached_tokens > 50
    assert done.proposed_tokens >= done.accepted_tokens > 0


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-long", "deepseek_v4"])
def test_gone_on_elsewhere_at_any_token(tiny: Callable[..., TinyCheckpoint], name: str) -> None:
    """Also where the frequencies have changed meanwhile, and just before and after that; and where
    runs of DeepSeek-V4's compressed entries are open."""
    decoder = tiny(name).decoder("cpu")
    request = Request(tuple(prompt(50)), SamplingParameters(temperature=0.7, seed=3), 60, 0)
    expected = alone(decoder, request)
    engine = Engine(decoder, CONTEXT_LENGTH, 4, page_tokens=PAGE_TOKENS)
    for count in range(0, 60, 1):
        sequence = add(engine, request, output_ids=expected[:count])
        while engine.step():
            pass
        assert (sequence.output_ids, sequence.finish) == (expected, "length")


def test_the_next_turn_of_a_chat_finds_what_was_said(
    tiny: Callable[..., TinyCheckpoint],
) -> None:
    for name in ("llama", "gemma3", "deepseek_v4"):
        decoder = tiny(name).decoder("cpu")
        engine = Engine(decoder, CONTEXT_LENGTH, page_tokens=PAGE_TOKENS)
        first = add(engine, Request(tuple(prompt(50)), SamplingParameters(), 40, 0))
        while engine.step():
            pass
        turn = Request((*first.token_ids, *prompt(9, seed=9)), SamplingParameters(), 20, 0)
        second = add(engine, turn)
        while engine.step():
            pass
        assert second.cached_tokens == 80  # of 90, in pages of 16; the last is not computed
        assert second.output_ids == alone(decoder, turn)
