"""A replica of PyTorch's beside one of the cpu backend: either takes over the other's streams.

Both compute exactly, so that they differ by the order of float32 sums alone, and give the same
tokens. The second half is what a client sees of it over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import openai
import pytest

import firstlight
from firstlight.backends import available_devices
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.server.app import create_app
from firstlight.server.http_server import HttpServer, address_of, listen
from firstlight.server.router import Router
from firstlight.server.service import Service
from tests.support.http_server import texts_of
from tests.support.routers import (
    MODEL,
    Reader,
    all_pages_free,
    options,
    read_all,
    requests,
    running_router,
    send_signal,
    undisturbed,
    until,
)
from tests.support.tiny_chat import write_chat_model

DEVICES = ("torch:cpu", "cpu")
SHORT = requests()

pytestmark = pytest.mark.skipif(
    not set(DEVICES) <= set(available_devices()), reason="both are needed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[list[int]]:
    return undisturbed(folder, SHORT, exact=True)


def as_fast_as_one_another(router: Router) -> None:
    """Have the router think so, so that each gets half of the streams."""
    for replica in router.supervised:
        assert replica.ready is not None
        replica.ready = msgspec.structs.replace(replica.ready, step_seconds=0.001)


@pytest.mark.parametrize("killed", [0, 1])
def test_streams_move_between_pytorch_and_cpu(
    folder: Path, tokens: list[list[int]], killed: int
) -> None:
    models = {MODEL: options(folder, exact=True)}

    async def run() -> None:
        async with running_router(folder, DEVICES, models=models) as router:
            replica = router.supervised[killed]
            as_fast_as_one_another(router)

            async def kill(readers: list[Reader]) -> None:
                # One replica is faster: later it might have no streams left.
                await until(lambda: sum(len(reader.tokens) >= 3 for reader in readers) >= 4)
                assert replica.streams
                send_signal(replica)

            assert await read_all(router, SHORT, kill) == tokens
            assert replica.moved > 0
            await until(lambda: replica.ready is not None)
            await all_pages_free(router)

    asyncio.run(run())


# Over HTTP ------------------------------------------------------------------------------------

PROMPTS = ("abc", "first light", "a long night", "the star")
LENGTH = 120


@dataclass
class Client:
    """Reads one answer as it streams."""

    prompt: str
    text: str = ""
    chunks: int = 0
    finish: list[str] = field(default_factory=list)
    counted: int = 0

    async def read(self, api: openai.AsyncOpenAI) -> None:
        stream = await api.completions.create(
            model=MODEL,
            prompt=self.prompt,
            temperature=0,
            max_tokens=LENGTH,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            assert not self.counted, "something after the last chunk"
            self.chunks += 1
            for choice in chunk.choices:
                self.text += choice.text
                self.finish += [choice.finish_reason] if choice.finish_reason else []
            if chunk.usage is not None:
                self.counted = chunk.usage.completion_tokens


@asynccontextmanager
async def answering(router: Router, tokenizer: Tokenizer) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an HTTP server over the router; it asks nothing twice."""
    service = Service(router, texts_of(MODEL, tokenizer))
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(service, ()), service, listener, None)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        url = f"{address_of(listener, False)}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
            yield api
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_client_sees_no_break(folder: Path, killed: int) -> None:
    model = firstlight.load(folder, "numpy", exact=True, cache=False, tune=None)
    assert model.tokenizer is not None
    asked = {"temperature": 0.0, "max_tokens": LENGTH, "ignore_end": True}
    expected = [each.text for each in model.generate_many(PROMPTS, **asked)]
    tokenizer = model.tokenizer

    async def run() -> None:
        models = {MODEL: options(folder, exact=True)}
        async with (
            running_router(folder, DEVICES, models=models) as router,
            answering(router, tokenizer) as api,
        ):
            replica = router.supervised[killed]
            as_fast_as_one_another(router)
            clients = [Client(prompt) for prompt in PROMPTS]
            tasks = [asyncio.create_task(client.read(api)) for client in clients]
            # It has told some of what it computes to clients, and has not told all.
            await until(lambda: any(stream.begun for stream in replica.streams.values()))
            send_signal(replica)
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
            assert replica.moved > 0
            assert [client.text for client in clients] == expected
            assert all(client.finish == ["length"] for client in clients)
            assert all(client.counted == LENGTH for client in clients)

    asyncio.run(run())
