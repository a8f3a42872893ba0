"""Load on a server: which requests come when, and what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from firstlight.benchmark.percentiles import Percentiles, percentiles
from firstlight.errors import RequestError


@dataclass(frozen=True)
class Load:
    """Requests, and when they are sent.

    Attributes:
        requests: how many.
        concurrency: most requests that are open at once; None: as many as arrive.
        rate: requests per second that arrive on average, at random and independently of each
            other and of the answers (a Poisson process); None: each as soon as there is room.
        seed: of the arrivals.

    Raises:
        RequestError: a number is not positive, or there is neither a concurrency nor a rate.
    """

    requests: int
    concurrency: int | None = None
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise RequestError("requests", f"is {self.requests}", "Give a whole number from 1")
        if self.concurrency is not None and self.concurrency < 1:
            raise RequestError(
                "concurrency", f"is {self.concurrency}", "Give a whole number from 1"
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise RequestError("rate", f"is {self.rate:g}", "Give requests per second above 0")
        if self.concurrency is None and self.rate is None:
            raise RequestError(
                "load", "has neither a concurrency nor a rate", "Give one of them, or both"
            )

    def arrivals(self) -> list[float]:
        """When each request arrives, in seconds from the start."""
        if self.rate is None:
            return [0.0] * self.requests
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate, self.requests)
        gaps[0] = 0.0
        return [float(each) for each in np.cumsum(gaps)]


@dataclass
class Record:
    """One request as its client saw it.

    Attributes:
        arrived: when it was to be sent, in seconds on a monotonic clock. A request that had to
            wait for room counts from then, so that a slow server cannot hide behind its clients.
        tokens_at: when each piece of the answer came that held a token or more.
        ended: when the answer was whole, or the error came.
        prompt_tokens, output_tokens: as the server counted them.
        error: what went wrong, or "".
    """

    arrived: float
    tokens_at: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


Send = Callable[[int, Record], Awaitable[None]]
"""Sends request number i and fills in its record; what it raises becomes the record's error."""


async def run_load(load: Load, send: Send, advance: Callable[[int], None]) -> list[Record]:
    """Send all requests of a load and wait for their ends; `advance` learns of each end."""
    room = asyncio.Semaphore(load.requests if load.concurrency is None else load.concurrency)
    start = time.monotonic()

    async def one(number: int, arrives: float) -> Record:
        await asyncio.sleep(max(0.0, start + arrives - time.monotonic()))
        record = Record(start + arrives)
        async with room:
            if load.rate is None:  # each comes when the one before it leaves
                record.arrived = time.monotonic()
            try:
                await send(number, record)
            except Exception as error:  # whatever a server does is a result
                record.error = f"{type(error).__name__}: {error}".strip()
            record.ended = time.monotonic()
        advance(1)
        return record

    return await asyncio.gather(
        *(one(number, arrives) for number, arrives in enumerate(load.arrivals()))
    )


@dataclass(frozen=True)
class LoadResult:
    """A load's figures. Waits and rates count requests without an error only.

    Attributes:
        seconds: from the first request's arrival to the last one's end.
        first_token: from arrival to the first token.
        between_tokens: between the pieces of one answer.
        whole: from arrival to the end.
        errors: message -> how often.
    """

    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    first_token: Percentiles
    between_tokens: Percentiles
    whole: Percentiles
    errors: dict[str, int]

    @property
    def requests_per_second(self) -> float:
        return (self.requests - self.failed) / self.seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


def summarise(records: Sequence[Record]) -> LoadResult:
    """The figures of a load's records."""
    good = [record for record in records if not record.error]
    gaps = [
        later - earlier
        for record in good
        for earlier, later in zip(record.tokens_at, record.tokens_at[1:], strict=False)
    ]
    errors: dict[str, int] = {}
    for record in records:
        if record.error:
            errors[record.error] = errors.get(record.error, 0) + 1
    begun = min(record.arrived for record in records)
    return LoadResult(
        requests=len(records),
        failed=len(records) - len(good),
        seconds=max(max(record.ended for record in records) - begun, 1e-9),
        prompt_tokens=sum(record.prompt_tokens for record in good),
        output_tokens=sum(record.output_tokens for record in good),
        first_token=percentiles(
            [record.tokens_at[0] - record.arrived for record in good if record.tokens_at]
        ),
        between_tokens=percentiles(gaps),
        whole=percentiles([record.ended - record.arrived for record in good]),
        errors=errors,
    )
