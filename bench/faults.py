"""Random faults under live streams: what is lost, what comes twice, what comes out differently.

    python bench/faults.py --model demo --devices cpu,cpu --faults 40

Sixteen streams are always under way over the given replicas. Now and then something
happens: a replica is killed or stopped, all are killed, readers leave or stop reading for a while.
Each stream's tokens are compared with those that the same request got before anything happened.
Prints a table in Markdown, and leaves with exit code 1 if anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from firstlight.errors import FirstlightError
from firstlight.replica.messages import ModelOptions, Sampling, SequenceRequest
from firstlight.server.router import Limits, Router
from firstlight.server.supervised_replica import SupervisedReplica
from firstlight.server.token_streams import PromptEvent

MODEL = "model"
STREAMS = 16


@dataclass
class Books:
    """What was counted, by the fault that a request met last."""

    faults: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    left: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    twice: int = 0


@dataclass(eq=False)
class Live:
    """A request under way, and what happened to it."""

    index: int
    tokens: list[int] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    slow: float = 0.0
    leaving: bool = False


def make_requests(count: int, context: int, vocabulary: int, seed: int) -> list[SequenceRequest]:
    """Prompts from short to a good part of the context, half of them greedy."""
    generator = random.Random(seed)
    longest = min(700, context // 2)
    return [
        SequenceRequest(
            [generator.randrange(vocabulary) for _ in range(generator.randint(4, longest))],
            Sampling(temperature=0.9, top_p=0.9, seed=index) if index % 2 else Sampling(),
            max_tokens=generator.randint(20, min(120, context // 2)),
        )
        for index in range(count)
    ]


async def read(router: Router, request: SequenceRequest, live: Live) -> None:
    """Read a stream to its end, or until the reader leaves."""
    stream = router.open(MODEL, request)
    prompts = 0
    async for event in stream:
        if live.leaving:
            stream.cancel()
            return
        if live.slow:
            await asyncio.sleep(live.slow)
            live.slow = 0.0
        if isinstance(event, PromptEvent):
            prompts += 1
        else:
            live.tokens.append(event.token_id)
    if prompts != 1:
        raise RuntimeError(f"{prompts} prompt events")


class Trial:
    """Streams one after another in sixteen lanes, and faults among them."""

    def __init__(
        self, router: Router, requests: list[SequenceRequest], seed: int, pause: float
    ) -> None:
        self.pause = pause
        self.router, self.requests = router, requests
        self.books = Books()
        self.expected: list[list[int]] = []
        self.live: set[Live] = set()
        self.random = random.Random(seed)
        self.over = False

    async def learn(self) -> None:
        """The tokens of each request while nothing happens."""
        lives = [Live(index) for index in range(len(self.requests))]
        gate = asyncio.Semaphore(STREAMS)

        async def one(live: Live) -> None:
            async with gate:
                await read(self.router, self.requests[live.index], live)

        await asyncio.gather(*(one(live) for live in lives))
        self.expected = [live.tokens for live in lives]

    async def lane(self) -> None:
        while not self.over:
            live = Live(self.random.randrange(len(self.requests)))
            self.live.add(live)
            try:
                await read(self.router, self.requests[live.index], live)
                self.judge(live)
            except FirstlightError as error:
                self.books.lost.append(str(error))
            finally:
                self.live.discard(live)
                self.books.met.update(live.met)

    def judge(self, live: Live) -> None:
        expected = self.expected[live.index]
        if live.leaving:
            self.books.left += 1
            expected = expected[: len(live.tokens)]
        else:
            self.books.finished += 1
        if len(live.tokens) > len(expected):
            self.books.twice += 1
        elif live.tokens != expected:
            self.books.wrong += 1

    async def faults(self, count: int) -> None:
        kinds = [self.kill, self.stop, self.kill_all, self.leave, self.stall]
        for number in range(count):
            await asyncio.sleep(self.random.uniform(0.2, 2.0) * self.pause)
            # Something happens to those that work; where none does, wait for one.
            while not any(replica.ready and replica.streams for replica in self.router.supervised):
                await asyncio.sleep(0.05)
            kinds[number % len(kinds)]()

    def count(self, kind: str, lives: set[Live]) -> None:
        self.books.faults[kind] += 1
        for live in lives:
            live.met.add(kind)

    def working(self) -> list[SupervisedReplica]:
        return [each for each in self.router.supervised if each.ready and each.process]

    def send(self, replica: SupervisedReplica, number: int) -> None:
        assert replica.process is not None
        replica.process.send_signal(number)

    def kill(self) -> None:
        self.count("`kill -9` of a replica", self.live)
        self.send(self.random.choice(self.working()), signal.SIGKILL)

    def stop(self) -> None:
        self.count("`SIGSTOP` of a replica", self.live)
        self.send(self.random.choice(self.working()), signal.SIGSTOP)

    def kill_all(self) -> None:
        self.count("`kill -9` of all replicas", self.live)
        for replica in self.working():
            self.send(replica, signal.SIGKILL)

    def leave(self) -> None:
        leaving = set(self.random.sample(sorted(self.live, key=id), 4))
        self.count("4 readers leave", leaving)
        for live in leaving:
            live.leaving = True

    def stall(self) -> None:
        slow = set(self.random.sample(sorted(self.live, key=id), 4))
        self.count("4 readers stop reading for 3 s", slow)
        for live in slow:
            live.slow = 3.0


async def settle(router: Router, seconds: float) -> bool:
    """Whether all pages come back within so many seconds."""
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        statistics = [each.statistics for each in router.supervised if each.ready]
        if len(statistics) == len(router.supervised) and all(
            each.free_pages == each.pages and not each.running for each in statistics
        ):
            return True
    return False


async def run(arguments: argparse.Namespace) -> int:
    options = ModelOptions(arguments.model, context_length=arguments.context)
    limits = Limits(hang_seconds=arguments.hang, slowest_restart=1.0)
    router = Router({MODEL: options}, arguments.devices.split(","), limits)
    await router.start()
    try:
        await router.wait_ready()
        served = router.models()[MODEL]
        requests = make_requests(24, served.context_length, served.vocabulary_size, arguments.seed)
        trial = Trial(router, requests, arguments.seed, arguments.pause)
        await trial.learn()
        started = time.monotonic()
        lanes = [asyncio.create_task(trial.lane()) for _ in range(STREAMS)]
        await trial.faults(arguments.faults)
        trial.over = True
        await asyncio.gather(*lanes)
        seconds = time.monotonic() - started
        pages_back = await settle(router, 60)
        moved = sum(replica.moved for replica in router.supervised)
        restarts = sum(replica.restarts for replica in router.supervised)
    finally:
        await router.stop()
    return report(arguments, trial.books, moved, restarts, pages_back, seconds)


def report(
    arguments: argparse.Namespace,
    books: Books,
    moved: int,
    restarts: int,
    pages_back: bool,
    seconds: float,
) -> int:
    print(f"{arguments.model} on {arguments.devices}, {STREAMS} streams, {seconds:.0f} s\n")
    print("| fault | times | requests under way |\n| --- | --- | --- |")
    for kind, times in books.faults.items():
        print(f"| {kind} | {times} | {books.met[kind]} |")
    print(
        f"\nfinished {books.finished}, left by their readers {books.left}, moved {moved} times, "
        f"restarts {restarts}; lost {len(books.lost)}, with a token twice {books.twice}, "
        f"with other tokens {books.wrong}; all pages back: {'yes' if pages_back else 'NO'}"
    )
    for error in books.lost:
        print(f"lost: {error}")
    return int(bool(books.lost or books.twice or books.wrong) or not pages_back)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--devices", default="cpu,cpu")
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--context", type=int, default=None)
    parser.add_argument("--hang", type=float, default=2.0, help="seconds (Limits.hang_seconds)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between faults, mean")
    parser.add_argument("--seed", type=int, default=1)
    logging.basicConfig(level=logging.CRITICAL)
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
