"""A replica of PyTorch's beside one of the cpu backend: either takes over the other's streams.

Both compute exactly, so that they differ by the order of float32 sums alone, and give the same
tokens.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firstlight.backends import available_devices
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


@pytest.mark.parametrize("killed", [0, 1])
def test_streams_move_between_pytorch_and_cpu(
    folder: Path, tokens: list[list[int]], killed: int
) -> None:
    models = {MODEL: options(folder, exact=True)}

    async def run() -> None:
        async with running_router(folder, DEVICES, models=models) as router:
            replica = router.supervised[killed]

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
