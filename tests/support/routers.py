"""Routers over real replica processes with a tiny model, and requests whose tokens are known."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import firstlight
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.replica.messages import ModelOptions, Sampling, SequenceRequest
from firstlight.server.router import Limits, Router
from firstlight.server.supervised_replica import SupervisedReplica
from firstlight.server.token_streams import PromptEvent, TokenStream
from tests.support.tiny_chat import VOCABULARY_SIZE

SOURCE = Path(firstlight.__file__).parent.parent
MODEL = "tiny"
SEQUENCES = 16


def options(folder: Path, **changes: object) -> ModelOptions:
    """Of the tiny model in a folder."""
    return ModelOptions(str(folder), sequences=SEQUENCES, cache=False, tune=None, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running_router(
    folder: Path,
    devices: Sequence[str] = ("numpy",),
    limits: Limits | None = None,
    command: Sequence[str] | None = None,
    every: bool = True,
    models: Mapping[str, ModelOptions] | None = None,
) -> AsyncIterator[Router]:
    """A router with a ready replica, or, with `every`, with all of them ready."""
    os.environ["FIRSTLIGHT_SKIP_KERNEL_CHECK"] = "1"
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    limits = limits or Limits(hang_seconds=30.0)
    extra = {} if command is None else {"command": command}
    router = Router(models or {MODEL: options(folder)}, devices, limits, **extra)  # type: ignore[arg-type]
    await router.start()
    try:
        await asyncio.wait_for(router.wait_ready(), 60)
        if every:
            await until(lambda: all(each.ready is not None for each in router.supervised))
        yield router
    finally:
        await router.stop()


def requests(
    count: int = 16, prompt_tokens: int = 24, max_tokens: int = 60
) -> list[SequenceRequest]:
    """Different prompts of about that length; every other one samples, with a seed."""
    generator = np.random.default_rng(count)
    return [
        SequenceRequest(
            prompt_ids=generator.integers(0, VOCABULARY_SIZE, prompt_tokens + index).tolist(),
            sampling=Sampling(temperature=0.8, top_p=0.95, seed=index) if index % 2 else Sampling(),
            max_tokens=max_tokens + index,
        )
        for index in range(count)
    ]


def undisturbed(
    folder: Path,
    asked: Sequence[SequenceRequest],
    device: str = "numpy",
    exact: bool = False,
) -> list[list[int]]:
    """The tokens of each request on an engine in this process."""
    engine = firstlight.load(
        folder, device, sequences=SEQUENCES, cache=False, tune=None, exact=exact
    ).engine
    sequences = [
        engine.add(
            each.prompt_ids,
            SamplingParameters(
                temperature=each.sampling.temperature,
                top_p=each.sampling.top_p,
                seed=each.sampling.seed,
            ),
            StopConditions(max_tokens=each.max_tokens),
        )
        for each in asked
    ]
    while engine.step():
        pass
    return [list(sequence.output_ids) for sequence in sequences]


@dataclass
class Reader:
    """Reads a stream as a client would, and holds it to the order of events."""

    stream: TokenStream
    tokens: list[int] = field(default_factory=list)
    prompts: int = 0
    finish: str | None = None

    async def read(self) -> list[int]:
        async for event in self.stream:
            assert self.finish is None, "an event after the last"
            if isinstance(event, PromptEvent):
                assert not self.tokens, "the prompt after a token"
                self.prompts += 1
            else:
                self.tokens.append(event.token_id)
                self.finish = event.finish
        assert self.prompts == 1
        return self.tokens


async def read_all(
    router: Router,
    asked: Sequence[SequenceRequest],
    meanwhile: Callable[[list[Reader]], Awaitable[None]] | None = None,
) -> list[list[int]]:
    """Every request's tokens, all read at once while something happens."""
    readers = [Reader(router.open(MODEL, each)) for each in asked]
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    if meanwhile is not None:
        await meanwhile(readers)
    results = await asyncio.wait_for(asyncio.gather(*tasks), 120)
    assert all(reader.finish is not None for reader in readers)
    return results


class SharedRouter:
    """A router on an event loop of its own, for several tests one after the other."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = running_router(folder)
        self._router = self._loop.run_until_complete(self._context.__aenter__())

    def run(self, test: Callable[[Router], Coroutine[Any, Any, None]]) -> None:
        self._loop.run_until_complete(asyncio.wait_for(test(self._router), 60))

    def close(self) -> None:
        self._loop.run_until_complete(self._context.__aexit__(None, None, None))
        self._loop.close()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something; fails where it does not come."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "what was waited for has not come"
        await asyncio.sleep(0.002)


async def all_pages_free(router: Router) -> None:
    """Wait until every replica that is ready has all pages back."""
    await until(
        lambda: all(
            each.statistics.running == each.statistics.waiting == 0
            and each.statistics.free_pages == each.statistics.pages > 0
            for each in router.supervised
            if each.ready is not None
        ),
        10,
    )


def send_signal(replica: SupervisedReplica, number: int = signal.SIGKILL) -> None:
    """A signal to the process that a replica is now."""
    assert replica.process is not None
    os.kill(replica.process.pid, number)


def command_with(code: str) -> tuple[str, ...]:
    """A replica's process that first runs some code, which may change what it does."""
    run = "import sys; from firstlight.replica.process import main; sys.exit(main())"
    return (sys.executable, "-P", "-c", f"{code}\n{run}")
