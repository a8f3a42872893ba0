"""A replica on two ranks beside one of the cpu backend: when a rank dies, the other takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
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
    undisturbed,
    until,
)
from tests.support.tiny_chat import write_chat_model

DEVICES = ("torch:cpu:0-1", "cpu")
STATED_SECONDS = 10.0

pytestmark = pytest.mark.skipif(
    not {"torch:cpu", "cpu"} <= set(available_devices()), reason="both are needed"
)


def test_streams_of_a_rank_that_is_killed_go_on_elsewhere(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path)
    # So many that the slower one gets its share.
    asked = requests(64, prompt_tokens=8, max_tokens=16)
    expected = undisturbed(folder, asked, "cpu", exact=True)

    async def run() -> None:
        models = {MODEL: options(folder, exact=True)}
        async with running_router(folder, DEVICES, models=models) as router:
            replica = router.supervised[0]
            assert replica.process is not None
            leader = psutil.Process(replica.process.pid)
            (rank,) = leader.children()
            ended = 0.0

            def begun() -> bool:
                return any(each.output_ids for each in replica.streams.values())

            async def kill(readers: list[Reader]) -> None:
                nonlocal ended
                # Ranks wait for each other, which takes long where others use the cores too.
                await until(begun, 180)
                os.kill(rank.pid, signal.SIGKILL)
                started = time.monotonic()
                await until(lambda: replica.restarts == 1)
                ended = time.monotonic() - started

            assert await read_all(router, asked, kill) == expected
            assert 0 < ended < STATED_SECONDS
            assert replica.moved > 0
            assert not leader.is_running() or leader.status() == psutil.STATUS_ZOMBIE
            # Not as a model that could not be loaded, which is tried again much later.
            assert replica.failure is None
            await all_pages_free(router)

    asyncio.run(run())
