"""Replicas that die, hang and come back, each under 16 live streams.

The tokens must be those of an engine that nobody disturbs, each once.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from firstlight.errors import DeviceError
from firstlight.replica.messages import SequenceRequest
from firstlight.server.router import Limits
from firstlight.server.token_streams import OverloadedError
from tests.support.routers import (
    MODEL,
    Reader,
    all_pages_free,
    command_with,
    read_all,
    requests,
    running_router,
    send_signal,
    undisturbed,
    until,
)
from tests.support.tiny_chat import write_chat_model

SHORT = requests()
LONG_PROMPTS = requests(prompt_tokens=380, max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def short_tokens(folder: Path) -> list[list[int]]:
    return undisturbed(folder, SHORT)


@pytest.fixture(scope="module")
def long_prompt_tokens(folder: Path) -> list[list[int]]:
    return undisturbed(folder, LONG_PROMPTS)


def decoding(readers: list[Reader]) -> bool:
    return all(len(reader.tokens) >= 3 for reader in readers)


@pytest.mark.parametrize("devices", [("numpy",), ("numpy", "numpy")])
def test_a_replica_is_killed_while_it_decodes(
    folder: Path, short_tokens: list[list[int]], devices: tuple[str, ...]
) -> None:
    async def run() -> None:
        async with running_router(folder, devices) as router:

            async def kill(readers: list[Reader]) -> None:
                await until(lambda: decoding(readers))
                assert router.supervised[0].streams
                send_signal(router.supervised[0])

            assert await read_all(router, SHORT, kill) == short_tokens
            assert router.supervised[0].moved > 0
            await until(lambda: router.supervised[0].ready is not None)
            assert router.supervised[0].restarts == 1
            await all_pages_free(router)

    asyncio.run(run())


@pytest.mark.parametrize("devices", [("numpy",), ("numpy", "numpy")])
def test_a_replica_is_killed_while_it_computes_prompts(
    folder: Path, long_prompt_tokens: list[list[int]], devices: tuple[str, ...]
) -> None:
    async def run() -> None:
        async with running_router(folder, devices) as router:
            replica = router.supervised[0]

            async def kill(readers: list[Reader]) -> None:
                await until(lambda: replica.statistics.steps > 0)
                assert any(not stream.begun for stream in replica.streams.values())
                send_signal(replica)

            assert await read_all(router, LONG_PROMPTS, kill) == long_prompt_tokens
            assert replica.moved > 0
            await all_pages_free(router)

    asyncio.run(run())


def test_both_replicas_are_killed_again_and_again(
    folder: Path, short_tokens: list[list[int]]
) -> None:
    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:

            async def kill(readers: list[Reader]) -> None:
                for tokens in (1, 20, 40):
                    await until(lambda tokens=tokens: len(readers[-1].tokens) >= tokens)
                    for replica in router.supervised:
                        if replica.process is not None:
                            send_signal(replica)

            assert await read_all(router, SHORT, kill) == short_tokens
            assert sum(replica.restarts for replica in router.supervised) >= 3
            await until(lambda: all(replica.ready for replica in router.supervised))
            await all_pages_free(router)

    asyncio.run(run())


def test_a_replica_hangs(folder: Path, short_tokens: list[list[int]]) -> None:
    async def run() -> None:
        limits = Limits(hang_seconds=1.0)
        async with running_router(folder, ("numpy", "numpy"), limits) as router:
            replica = router.supervised[0]

            async def hang(readers: list[Reader]) -> None:
                await until(lambda: decoding(readers))
                send_signal(replica, signal.SIGSTOP)

            assert await read_all(router, SHORT, hang) == short_tokens
            assert replica.moved > 0
            await until(lambda: replica.ready is not None)

    asyncio.run(run())


def test_a_process_that_cannot_even_be_killed_is_left_behind(
    folder: Path, short_tokens: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        limits = Limits(hang_seconds=1.0)
        async with running_router(folder, ("numpy", "numpy"), limits) as router:
            replica = router.supervised[0]
            process = replica.process
            assert process is not None

            async def hang(readers: list[Reader]) -> None:
                await until(lambda: decoding(readers))
                monkeypatch.setattr(process, "kill", lambda: None)
                send_signal(replica, signal.SIGSTOP)

            try:
                assert await read_all(router, SHORT, hang) == short_tokens
                assert replica.moved > 0
                await until(lambda: replica.ready is not None)
                assert replica.process is not process and process.returncode is None
            finally:
                process.send_signal(signal.SIGKILL)

    asyncio.run(run())


def test_stopping_at_once_ends_a_drain(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder) as router:
            readers = [Reader(router.open(MODEL, each)) for each in SHORT]
            tasks = [asyncio.create_task(reader.read()) for reader in readers]
            draining = asyncio.create_task(router.drain())
            await until(lambda: decoding(readers))
            await router.stop()
            await asyncio.wait_for(draining, 10)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, OverloadedError) for outcome in outcomes)

    asyncio.run(run())


def test_readers_that_leave_disturb_nobody(folder: Path, short_tokens: list[list[int]]) -> None:
    async def run() -> None:
        async with running_router(folder) as router:
            readers = [Reader(router.open(MODEL, each)) for each in SHORT]
            tasks = [asyncio.create_task(reader.read()) for reader in readers]
            await until(lambda: decoding(readers))
            for task, reader in list(zip(tasks, readers, strict=True))[::2]:
                task.cancel()
                reader.stream.cancel()
            assert await asyncio.gather(*tasks[1::2]) == short_tokens[1::2]
            for reader, tokens in list(zip(readers, short_tokens, strict=True))[::2]:
                assert 3 <= len(reader.tokens) < len(tokens)
                assert reader.tokens == tokens[: len(reader.tokens)]
            await all_pages_free(router)

    asyncio.run(run())


def test_a_reader_that_is_slow_holds_up_nobody_and_misses_nothing(
    folder: Path, short_tokens: list[list[int]]
) -> None:
    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:
            slow = Reader(router.open(MODEL, SHORT[0]))
            assert await read_all(router, SHORT[1:]) == short_tokens[1:]
            await until(lambda: slow.stream.ended)  # type: ignore[attr-defined]
            assert await slow.read() == short_tokens[0]
            await all_pages_free(router)

    asyncio.run(run())


def test_draining_finishes_what_was_accepted_even_if_a_replica_dies(
    folder: Path, short_tokens: list[list[int]]
) -> None:
    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:

            async def drain(readers: list[Reader]) -> None:
                await until(lambda: decoding(readers))
                draining = asyncio.create_task(router.drain())
                await asyncio.sleep(0)
                with pytest.raises(OverloadedError) as refused:
                    router.open(MODEL, SHORT[0])
                assert refused.value.draining
                send_signal(router.supervised[1])
                await draining

            processes = [replica.process for replica in router.supervised]
            assert await read_all(router, SHORT, drain) == short_tokens
            assert all(process and process.returncode is not None for process in processes)
            assert processes[0] and processes[0].returncode == 0  # ended, not killed

    asyncio.run(run())


def test_stopping_ends_every_stream_at_once_and_every_process(folder: Path) -> None:
    async def run() -> None:
        async with running_router(folder) as router:
            readers = [Reader(router.open(MODEL, each)) for each in SHORT]
            tasks = [asyncio.create_task(reader.read()) for reader in readers]
            await until(lambda: decoding(readers))
            process = router.supervised[0].process
            await router.stop()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, OverloadedError) for outcome in outcomes)
            assert process is not None and process.returncode is not None

    asyncio.run(run())


POISON = 7
_DIES_OF_POISON = f"""
import os
from firstlight.replica.worker import Worker
start = Worker.start
def start_or_die(self, message):
    if message.request.prompt_ids == [{POISON}] * 3:
        {{deed}}
    start(self, message)
Worker.start = start_or_die
"""


@pytest.mark.parametrize("deed", ["os._exit(9)", "raise MemoryError('no more')"])
def test_a_request_that_ends_replicas_is_given_up_alone(
    folder: Path, short_tokens: list[list[int]], deed: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = command_with(_DIES_OF_POISON.replace("{deed}", deed))

    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy"), command=command) as router:

            async def poison(readers: list[Reader]) -> None:
                await until(lambda: decoding(readers))
                stream = router.open(MODEL, SequenceRequest([POISON] * 3))
                with pytest.raises(DeviceError, match="this request: 4 replicas ended"):
                    await Reader(stream).read()

            assert await read_all(router, SHORT, poison) == short_tokens
            assert sum(replica.restarts for replica in router.supervised) == 4

    asyncio.run(run())
    assert ("MemoryError: no more" in caplog.text) == ("MemoryError" in deed)
