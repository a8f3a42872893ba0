"""The router over healthy replicas: what it serves, refuses, and lets wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.errors import CheckpointError, FirstlightError, RequestError
from firstlight.replica.messages import Ready, Sampling, SequenceRequest
from firstlight.server.router import Limits, Router
from firstlight.server.token_streams import OverloadedError, PromptEvent, TokenEvent
from tests.support.routers import (
    MODEL,
    SharedRouter,
    all_pages_free,
    options,
    read_all,
    requests,
    running_router,
    send_signal,
    undisturbed,
)
from tests.support.tiny_chat import VOCABULARY_SIZE, write_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[SharedRouter]:
    router = SharedRouter(folder)
    yield router
    router.close()


async def events(router: Router, request: SequenceRequest, model: str = MODEL) -> list[object]:
    return [event async for event in router.open(model, request)]


def test_two_models_on_two_kinds_of_device(folder: Path, tmp_path: Path) -> None:
    other = write_chat_model(tmp_path, context_length=128, seed=5)
    models = {MODEL: options(folder), "other": options(other)}
    asked = requests(4, max_tokens=20)
    # Kinds of device may differ in the last bits, and so in a token now and then.
    expected = [
        list(zip(undisturbed(each, asked), undisturbed(each, asked, "cpu"), strict=True))
        for each in (folder, other)
    ]
    assert expected[0] != expected[1]

    async def run() -> None:
        async with running_router(folder, ("numpy", "cpu"), models=models) as router:
            assert {name: each.context_length for name, each in router.models().items()} == {
                MODEL: 512,
                "other": 128,
            }
            assert router.models()["other"].vocabulary_size == VOCABULARY_SIZE
            assert [(each.name, each.model, each.state) for each in router.replicas()] == [
                ("numpy-1", MODEL, "ready"),
                ("cpu-2", MODEL, "ready"),
                ("numpy-3", "other", "ready"),
                ("cpu-4", "other", "ready"),
            ]
            for name, tokens in zip((MODEL, "other"), expected, strict=True):
                for request, wanted in zip(asked, tokens, strict=True):
                    prompt, *rest = await events(router, request, name)
                    assert prompt == PromptEvent(0)
                    assert [each.token_id for each in rest] in wanted  # type: ignore[attr-defined]
            totals = [each.statistics for each in router.replicas()]
            assert sum(each.output_tokens for each in totals) == 2 * sum(
                len(tokens) for tokens, _ in expected[0]
            )
            assert sum(each.prompt_tokens for each in totals) == 2 * sum(
                len(each.prompt_ids) for each in asked
            )

    asyncio.run(run())


def test_log_probabilities_and_finishes(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder) as router:
            request = SequenceRequest([1, 2, 3], max_tokens=4, log_probabilities=3)
            _, *tokens = await events(router, request)
            assert [each.finish for each in tokens] == [None, None, None, "length"]
            for token in tokens:
                assert isinstance(token, TokenEvent) and token.score is not None
                likeliest = token.score.likeliest
                assert likeliest[0].token_id == token.token_id  # greedy
                assert likeliest[0].log_probability == token.score.log_probability < 0
                assert [each.log_probability for each in likeliest] == sorted(
                    (each.log_probability for each in likeliest), reverse=True
                )
                assert len(likeliest) == 3
            end = SequenceRequest([1, 2, 3], max_tokens=4, end_ids=[tokens[1].token_id])
            last = (await events(router, end))[-1]
            assert last == TokenEvent(tokens[1].token_id, "stop")
            assert await events(router, SequenceRequest([1], max_tokens=0)) == [PromptEvent(0)]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (SequenceRequest([]), "no tokens"),
        (SequenceRequest([1] * 513), "513 tokens, and the context holds 512"),
        (SequenceRequest([VOCABULARY_SIZE]), "outside 0 to 259"),
        (SequenceRequest([-1]), "outside 0 to 259"),
        (SequenceRequest([1], sampling=Sampling(temperature=-1.0)), "temperature: is -1.0"),
        (SequenceRequest([1], sampling=Sampling(logit_bias={999: 1.0})), r"logit_bias\[999\]"),
        (SequenceRequest([1], max_tokens=-1), "max_tokens: is -1"),
    ],
)
def test_requests_that_cannot_be_computed_are_refused_alone(
    request_: SequenceRequest, words: str, shared: SharedRouter
) -> None:
    async def run(router: Router) -> None:
        good = router.open(MODEL, SequenceRequest([1], max_tokens=3))
        with pytest.raises(RequestError, match=words):
            await events(router, request_)
        assert len([event async for event in good]) == 4
        await all_pages_free(router)

    shared.run(run)


def test_a_model_that_is_not_served(shared: SharedRouter) -> None:
    async def run(router: Router) -> None:
        with pytest.raises(RequestError, match=r"'other': is not served here\. Use one of: tiny"):
            router.open("other", SequenceRequest([1]))

    shared.run(run)


def test_a_model_that_cannot_be_loaded_is_the_servers_error_too(tmp_path: Path) -> None:
    async def run() -> None:
        router = Router({MODEL: options(tmp_path / "nowhere.gguf")})
        await router.start()
        try:
            with pytest.raises(FirstlightError, match=r"nowhere\.gguf"):
                await asyncio.wait_for(router.wait_ready(), 60)
            assert [each.state for each in router.replicas()] == ["failed"]
        finally:
            await router.stop()

    asyncio.run(run())
    (tmp_path / "config.json").write_text("{}")

    async def run_empty() -> None:
        router = Router({MODEL: options(tmp_path)})
        await router.start()
        try:
            with pytest.raises(CheckpointError):
                await asyncio.wait_for(router.wait_ready(), 60)
            await asyncio.wait_for(router.drain(), 10)  # does not wait for the next attempt
        finally:
            await router.stop()

    asyncio.run(run_empty())


def test_too_many_requests_are_refused_and_room_comes_back(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder, limits=Limits(requests=3)) as router:
            asked = requests(3, max_tokens=30)
            streams = [router.open(MODEL, each) for each in asked]
            with pytest.raises(OverloadedError, match="3 sequences are under way") as refused:
                router.open(MODEL, asked[0])
            assert refused.value.retry_after >= 1 and not refused.value.draining
            for stream in streams:
                async for _ in stream:
                    pass
            assert await read_all(router, asked) == undisturbed(folder, asked)

    asyncio.run(run())


def test_who_waits_too_long_for_a_replica_is_told_so(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder, limits=Limits(wait_seconds=0.6)) as router:
            send_signal(router.supervised[0], signal.SIGSTOP)
            with pytest.raises(OverloadedError, match=r"has not come to this request in 0\.6 s"):
                await events(router, SequenceRequest([1, 2]))

    asyncio.run(run())


def test_the_quicker_and_less_loaded_replica_is_chosen(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:
            first, second = router.supervised
            first.ready = Ready(512, 512, VOCABULARY_SIZE, 1.0)
            second.ready = Ready(512, 512, VOCABULARY_SIZE, 3.0)
            streams = [router.open(MODEL, each) for each in requests(8)]
            assert [len(first.streams), len(second.streams)] == [6, 2]
            for stream in streams:
                stream.cancel()
            assert not first.streams and not second.streams
            await all_pages_free(router)

    asyncio.run(run())


def test_the_next_turn_of_a_chat_goes_where_the_last_one_was(folder: Path) -> None:
    turn = [index % VOCABULARY_SIZE for index in range(150)]

    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:
            for seconds, replica in zip((1.0, 1.5), router.supervised, strict=True):
                replica.ready = type(router.supervised[0].ready)(512, 512, VOCABULARY_SIZE, seconds)  # type: ignore[misc]
            first, second = router.supervised
            busy = [
                router.open(MODEL, SequenceRequest([index], max_tokens=400)) for index in (1, 2)
            ]
            assert (len(first.streams), len(second.streams)) == (1, 1)
            last = await events(router, SequenceRequest(turn, max_tokens=1))
            assert last[0] == PromptEvent(0)
            for stream in busy:
                stream.cancel()
            # Both are idle, and the first is the quicker one.
            prompt, *_ = await events(router, SequenceRequest([*turn, 5, 6], max_tokens=1))
            assert isinstance(prompt, PromptEvent) and prompt.cached_tokens == 128
            # Nor is it told to another tenant, by the time that it takes.
            other = SequenceRequest([*turn, 5, 6], max_tokens=1, tenant="other")
            assert (await events(router, other))[0] == PromptEvent(0)

    asyncio.run(run())
