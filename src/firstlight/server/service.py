"""What the endpoints share: models, limits, callers, and the request that each call is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from starlette.requests import HTTPConnection

from firstlight.server.api_error import SERVER, ApiError
from firstlight.server.api_keys import Caller
from firstlight.server.limits import Limits
from firstlight.server.metrics import Metrics
from firstlight.server.rate_limits import RateLimits
from firstlight.server.response_bodies import Usage
from firstlight.server.served_model import ModelText
from firstlight.server.token_streams import ServedModel, TokenSource

_ENCODING_THREADS = 4
_RETRY_WHILE_LOADING = 5

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass
class Call:
    """One request on its way, as the log and the metrics see it.

    Attributes:
        id: in the header x-request-id, and in the log.
        route: the endpoint, "other" for what is none; metrics have no other paths.
        started: on `time.perf_counter`'s clock.
        status: of the response; 499 if the client left before its end.
    """

    id: str
    method: str
    path: str
    caller: Caller
    started: float = field(default_factory=time.perf_counter)
    route: str = "other"
    status: int = 0
    model: str | None = None
    usage: Usage | None = None
    finish: str | None = None
    first_token: float | None = None
    error: str | None = None


@dataclass(eq=False)
class Service:
    """Everything that outlives a request.

    Attributes:
        texts: the models that are served, by name, ready or not.
        callers: those who may ask; empty: anybody.
        anybody: who asks where no keys are needed.
        share_prefixes: between callers too, though the time it saves tells what others asked.
        draining: nothing new is taken in, what is running is brought to its end.
        running: requests being answered that must not be cut off.
    """

    source: TokenSource
    texts: Mapping[str, ModelText]
    limits: Limits = field(default_factory=Limits)
    callers: tuple[Caller, ...] = ()
    anybody: Caller = field(default_factory=lambda: Caller(""))
    share_prefixes: bool = False
    draining: bool = False
    running: int = 0
    rates: RateLimits = field(default_factory=RateLimits)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.source.replicas)
        self._threads = ThreadPoolExecutor(_ENCODING_THREADS, thread_name_prefix="encode")

    def model(self, name: str | None) -> tuple[ModelText, ServedModel]:
        """A model that is ready; None: the only one.

        Raises:
            ApiError: 404, there is no such model; 503, it is being loaded.
        """
        if name is None and len(self.texts) == 1:
            name = next(iter(self.texts))
        text = self.texts.get(name) if name is not None else None
        if name is None or text is None:
            known = ", ".join(self.texts)
            raise ApiError(
                404,
                "Which model? Give one of: " + known
                if name is None
                else f"There is no model {name!r} here. Served: {known}.",
                param="model",
                code="model_not_found",
            )
        served = self.source.models().get(name)
        if served is None:
            raise ApiError(
                503,
                f"The model {name} is not ready. Try again in {_RETRY_WHILE_LOADING} s.",
                SERVER,
                "model",
                "model_not_ready",
                {"retry-after": str(_RETRY_WHILE_LOADING)},
            )
        return text, served

    def admit(self, caller: Caller) -> None:
        """Take in a request.

        Raises:
            ApiError: 503, the server is about to stop; 429, the caller has used up its allowance.
        """
        if self.draining:
            raise ApiError(
                503,
                "The server is about to stop. Try again in a while.",
                SERVER,
                None,
                "draining",
                {"retry-after": "10", "connection": "close"},
            )
        self.rates.take(caller)

    def priority(self, caller: Caller, asked: int | None) -> int:
        """What a request gets: with keys, no more than its key allows."""
        if not self.callers:
            return asked or 0
        return caller.priority if asked is None else min(asked, caller.priority)

    def tenant(self, caller: Caller) -> str:
        """Whose prefixes a request may share."""
        return "" if self.share_prefixes else caller.name

    async def in_thread(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        """Encoding and rendering, which may take long, beside the streams."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments, **options))

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def service_of(connection: HTTPConnection) -> Service:
    """The service that a request came to."""
    service: Service = connection.app.state.service
    return service


def call_of(connection: HTTPConnection) -> Call:
    """A request's record."""
    call: Call = connection.scope["firstlight.call"]
    return call
