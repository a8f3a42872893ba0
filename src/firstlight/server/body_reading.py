"""Reading a request's body within bounds."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from firstlight.server.api_error import ApiError, error_bytes
from firstlight.server.limits import Limits
from firstlight.server.request_bodies import Body, read_body
from firstlight.server.service import service_of

_JSON = "application/json"


class BodyError(ApiError):
    """A body is refused before it was read whole, so the connection ends with the refusal."""


async def body_of(request: Request, kind: type[Body]) -> Body:
    """The body of a request, checked.

    Raises:
        ApiError: 415, it is said to be no JSON; 413, it is too long; 408, it does not come; 400,
            it is wrong.
        ClientDisconnect: the client left.
    """
    limits = service_of(request).limits
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _JSON:
        raise BodyError(415, f"The body must be JSON, with the header Content-Type: {_JSON}.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise BodyError(415, "The body must not be compressed.")
    return read_body(await _bytes(request, limits), kind)


async def _bytes(request: Request, limits: Limits) -> bytes:
    stated = request.headers.get("content-length", "0")
    # Digits only, as the protocol has checked; more than 15 of them are too many anyway.
    if len(stated) > 15 or int(stated) > limits.body_bytes:
        raise _too_long(limits)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.body_bytes:
                    raise _too_long(limits)
    except TimeoutError:
        message = f"The body did not come within {limits.body_seconds:g} s."
        raise BodyError(408, message) from None
    return bytes(data)


def _too_long(limits: Limits) -> BodyError:
    return BodyError(
        413, f"The body is longer than {limits.body_bytes} bytes.", code="body_too_large"
    )


class LastResponse(Response):
    """Refuses a body that is still coming: says so, drops some of what comes, and closes.

    Closed at once, with bytes unread, the connection would be reset, and many clients would never
    see the answer (RFC 9112, section 9.6).
    """

    def __init__(self, error: ApiError, limits: Limits) -> None:
        headers = {**error.headers, "connection": "close"}
        super().__init__(error_bytes(error), error.status, headers, _JSON)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = self._limits.linger_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_seconds):
                more = True
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(value: object, status: int = 200) -> Response:
    """`value` as JSON."""
    return Response(msgspec.json.encode(value), status, media_type=_JSON)
