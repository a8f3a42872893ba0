"""Answering while tokens come: as a stream of events, or whole at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from firstlight.server.api_error import ApiError, api_error_of, error_bytes, error_response
from firstlight.server.choice import Choice, cancel, events, usage_of
from firstlight.server.logs import LOGGER
from firstlight.server.response_bodies import Usage
from firstlight.server.service import Call, Service
from firstlight.server.token_streams import TokenEvent

CLIENT_LEFT = 499

_EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": waiting\n\n"
_DONE = b"data: [DONE]\n\n"


class Answer(Protocol):
    """How one of the APIs writes what comes."""

    def begin(self) -> list[msgspec.Struct]:
        """Chunks of a stream before any token."""
        ...

    def add(
        self, choice: Choice, event: TokenEvent, thoughts: str, answer: str
    ) -> msgspec.Struct | None:
        """Take in a token and what it made certain; the chunk for it, None if there is nothing to
        say yet. `choice.finish` is set where it is the last."""
        ...

    def last(self, usage: Usage) -> msgspec.Struct | None:
        """The chunk with the usage, where asked for."""
        ...

    def whole(self, usage: Usage) -> msgspec.Struct:
        """All that was added."""
        ...


class GenerationResponse(Response):
    """Runs sequences to their end, or until the client leaves, which cancels them at once.

    A sequence that fails before the headers are sent makes a response with the right status; a
    stream that waits longer for its first token begins with a comment, and a failure after that is
    an event that holds the error.
    """

    def __init__(
        self,
        service: Service,
        call: Call,
        choices: Sequence[Choice],
        answer: Answer,
        stream: bool,
        prompt_field: str,
    ) -> None:
        self._service = service
        self._call = call
        self._choices = choices
        self._answer = answer
        self._streams = stream
        self._prompt_field = prompt_field
        self._encoder = msgspec.json.Encoder()
        self._begun = False
        self._writing = False
        self._written = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, call = self._service, self._call
        work = asyncio.create_task(self._stream(send) if self._streams else self._collect())
        watch = asyncio.create_task(self._watch(receive, send))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                call.status = CLIENT_LEFT
                return
            response = work.result()
            if response is not None:
                await response(scope, receive, send)
        finally:
            cancel(self._choices)
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
            self._count(service, call)

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Ends when the client leaves; until then sends comments into a silent stream."""
        seconds = self._service.limits.comment_seconds
        leaving = asyncio.ensure_future(_left(receive))
        try:
            while not leaving.done():
                await asyncio.wait((leaving,), timeout=seconds)
                silent = time.perf_counter() - self._written > seconds
                if self._begun and not self._writing and silent and not leaving.done():
                    await self._write(send, _COMMENT)
        finally:
            leaving.cancel()

    async def _collect(self) -> Response:
        try:
            async with contextlib.aclosing(self._events()) as arrivals:
                async for choice, event, thoughts, answer in arrivals:
                    self._answer.add(choice, event, thoughts, answer)
            whole = self._answer.whole(usage_of(self._choices))
        except Exception as error:
            return error_response(self._error(error))
        return Response(self._encoder.encode(whole), media_type="application/json")

    async def _stream(self, send: Send) -> Response | None:
        async with contextlib.aclosing(self._events()) as arrivals:
            first = asyncio.ensure_future(anext(arrivals, None))
            try:
                await asyncio.wait((first,), timeout=self._service.limits.comment_seconds)
                if first.done() and (error := first.exception()) is not None:
                    return error_response(self._error(error))
                await self._begin(send)
                arrival = await first
                while arrival is not None:
                    chunk = self._answer.add(*arrival)
                    if chunk is not None:
                        await self._write(send, self._event(chunk))
                    arrival = await anext(arrivals, None)
                last = self._answer.last(usage_of(self._choices))
                end = (self._event(last) if last is not None else b"") + _DONE
            except Exception as error:
                end = b"data: " + error_bytes(self._error(error)) + b"\n\n" + _DONE
            finally:
                first.cancel()
        await send({"type": "http.response.body", "body": end, "more_body": False})
        return None

    async def _begin(self, send: Send) -> None:
        self._call.status = 200
        start = {"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM_HEADERS}
        await send(start)
        self._begun = True
        begin = b"".join(map(self._event, self._answer.begin()))
        if begin:
            await self._write(send, begin)

    async def _write(self, send: Send, data: bytes) -> None:
        self._writing = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing = False
        self._written = time.perf_counter()

    def _event(self, chunk: msgspec.Struct) -> bytes:
        return b"data: " + self._encoder.encode(chunk) + b"\n\n"

    async def _events(self) -> AsyncGenerator[tuple[Choice, TokenEvent, str, str], None]:
        """Tokens with the text that they make certain, timed."""
        name = self._call.model or ""
        first_token = self._service.metrics.first_token.labels(name)
        between_tokens = self._service.metrics.between_tokens.labels(name)
        last: dict[int, float] = {}
        async with contextlib.aclosing(events(self._choices)) as arrivals:
            async for choice, event in arrivals:
                now = time.perf_counter()
                before = last.get(choice.index)
                last[choice.index] = now
                if before is not None:
                    between_tokens.observe(now - before)
                elif self._call.first_token is None:
                    self._call.first_token = now - self._call.started
                    first_token.observe(self._call.first_token)
                thoughts, answer = choice.take(event)
                yield choice, event, thoughts, answer

    def _error(self, error: BaseException) -> ApiError:
        shown = api_error_of(error, self._prompt_field)
        self._call.error = shown.detail.message
        if shown.detail.code == "internal_error":
            LOGGER.error("A request failed", exc_info=error)
        return shown

    def _count(self, service: Service, call: Call) -> None:
        usage = usage_of(self._choices)
        call.usage = usage
        call.finish = ",".join(sorted({choice.finish or "cancelled" for choice in self._choices}))
        service.rates.use(call.caller, usage.completion_tokens)
        name = call.model or ""
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", cached),
            ("output", usage.completion_tokens),
        ):
            service.metrics.tokens.labels(name, kind).inc(count)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
