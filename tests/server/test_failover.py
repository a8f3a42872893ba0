"""Replicas that die, hang and come back, each under 16 live streams.

The tokens must be those of an engine that nobody disturbs, each once.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest

from firstlight.errors import DeviceError, RequestError
from firstlight.replica.messages import SequenceRequest
from firstlight.server.routed_stream import RoutedStream
from firstlight.server.router import Limits, Router
from firstlight.server.token_streams import OverloadedError, PromptEvent
from tests.support.routers import (
    MODEL,
    Reader,
    all_pages_free,
    command_with,
    options,
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
                await process.wait()

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


def test_an_engine_that_computes_nothing_though_sequences_wait_is_started_again(
    folder: Path, short_tokens: list[list[int]], tmp_path: Path
) -> None:
    stuck_once = f"""
import os
from firstlight.engine.engine import Engine
step = Engine.step
def stuck(self):
    if any(len(each.output_ids) > 3 for each in self.scheduler) and stuck.once():
        stuck.ever = True
    return [] if stuck.ever else step(self)
def once():
    try:
        os.close(os.open({str(tmp_path / "stuck")!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
stuck.ever, stuck.once = False, once
Engine.step = stuck
"""

    async def run() -> None:
        limits = Limits(hang_seconds=1.0)
        command = command_with(stuck_once)
        async with running_router(folder, ("numpy", "numpy"), limits, command) as router:
            assert await read_all(router, SHORT) == short_tokens
            assert sum(replica.moved for replica in router.supervised) > 0

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


@pytest.mark.parametrize("kills", [8])
def test_a_request_that_meets_one_kill_after_another_is_not_blamed(
    folder: Path, kills: int
) -> None:
    (request,) = requests(1, prompt_tokens=300, max_tokens=12)
    (expected,) = undisturbed(folder, [request])

    async def run() -> None:
        limits = Limits(slowest_restart=0.1, hang_seconds=30.0)
        async with running_router(folder, limits=limits) as router:
            replica = router.supervised[0]

            async def kill(readers: list[Reader]) -> None:
                for _ in range(kills):
                    await until(lambda: bool(replica.ready and replica.streams))
                    assert not readers[0].tokens
                    send_signal(replica)
                    await until(lambda: replica.ready is None)

            assert await read_all(router, [request], kill) == [expected]
            assert replica.restarts == kills

    asyncio.run(run())


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
                with pytest.raises(DeviceError, match="this request: 5 replicas ended"):
                    await Reader(stream).read()

            assert await read_all(router, SHORT, poison) == short_tokens
            assert sum(replica.restarts for replica in router.supervised) == 5

    asyncio.run(run())
    assert ("MemoryError: no more" in caplog.text) == ("MemoryError" in deed)


def test_scores_go_on_across_a_move(folder: Path) -> None:
    asked = [
        msgspec.structs.replace(each, log_probabilities=2, prompt_log_probabilities=1)
        for each in SHORT
    ]

    async def scores(router: Router, kill: bool) -> list[list[float]]:
        streams = [router.open(MODEL, each) for each in asked]
        found: list[list[float]] = [[] for _ in streams]

        async def read(stream: RoutedStream, scores: list[float]) -> None:
            async for event in stream:
                if isinstance(event, PromptEvent):
                    assert event.scores is not None
                    scores += (score.log_probability for score in event.scores)
                else:
                    assert event.score is not None and len(event.score.likeliest) == 2
                    scores.append(event.score.log_probability)

        tasks = [
            asyncio.create_task(read(stream, each))
            for stream, each in zip(streams, found, strict=True)
        ]
        if kill:
            lengths = [len(each.prompt_ids) + 4 for each in asked]
            await until(lambda: all(len(f) >= n for f, n in zip(found, lengths, strict=True)))
            send_signal(router.supervised[0])
        await asyncio.gather(*tasks)
        return found

    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy")) as router:
            expected = await scores(router, kill=False)
            found = await scores(router, kill=True)
            assert sum(replica.moved for replica in router.supervised) > 0
            for request, one, other in zip(asked, expected, found, strict=True):
                assert request.max_tokens is not None
                assert len(one) == len(request.prompt_ids) - 1 + request.max_tokens
                assert one == pytest.approx(other, abs=1e-4)

    asyncio.run(run())


def test_with_memory_for_a_few_all_end_and_what_can_never_fit_is_refused(
    folder: Path, short_tokens: list[list[int]]
) -> None:
    models = {MODEL: options(folder, state_memory=6 * 64 * 128)}

    async def run() -> None:
        async with running_router(folder, ("numpy", "numpy"), models=models) as router:
            ready = router.supervised[0].ready
            assert ready is not None and ready.sequence_tokens < 400

            async def more(readers: list[Reader]) -> None:
                with pytest.raises(RequestError, match="400 tokens, and there is state for"):
                    await Reader(router.open(MODEL, SequenceRequest([1] * 400))).read()
                await until(lambda: any(len(reader.tokens) > 3 for reader in readers))
                send_signal(router.supervised[1])

            assert await read_all(router, SHORT, more) == short_tokens
            assert sum(replica.statistics.preemptions for replica in router.supervised) > 0
            await until(lambda: all(replica.ready for replica in router.supervised))
            await all_pages_free(router)

    asyncio.run(run())
