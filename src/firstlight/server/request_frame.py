"""What surrounds every request: its id, its key, its log line, its place in the metrics."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstlight.server.api_error import ApiError, error_response
from firstlight.server.api_keys import Caller, bearer_key, find_caller
from firstlight.server.generation_response import CLIENT_LEFT
from firstlight.server.logs import log
from firstlight.server.service import Call, Service

# Whether the server lives is no secret, and those who ask have no key. Nor is how it is used.
OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/docs"})
_ROUTES = (
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/metrics",
    *OPEN_PATHS,
)  # fmt: skip
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class RequestFrame:
    """ASGI middleware; the application inside finds its `Call` in the scope."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service = self._service
        headers = Headers(scope=scope)
        path = scope["path"]
        given = headers.get("x-request-id", "")
        call = Call(
            given if _ID.fullmatch(given) else secrets.token_hex(12),
            scope["method"],
            path,
            service.anybody,
        )
        call.route = next(
            (route for route in _ROUTES if path == route or path.startswith(f"{route}/")), "other"
        )
        scope["firstlight.call"] = call
        ended = False

        async def send_framed(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                call.status = call.status or message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", call.id.encode()),
                    *service.rates.headers(call.caller),
                ]
            elif not message.get("more_body"):
                ended = True
            await send(message)

        service.running += 1
        service.metrics.open_requests.inc()
        try:
            caller = self._caller(headers, path)
            if caller is None:
                call.error = "no valid key"
                await error_response(_no_key())(scope, receive, send_framed)
                return
            call.caller = caller
            await self._app(scope, receive, send_framed)
        except BaseException:
            call.status = 500
            raise
        finally:
            if not ended and call.status < 400:
                call.status = CLIENT_LEFT
            service.running -= 1
            service.metrics.open_requests.dec()
            self._record(call)

    def _caller(self, headers: Headers, path: str) -> Caller | None:
        """Who asks; None for nobody that we know."""
        service = self._service
        if not service.callers or path in OPEN_PATHS:
            return service.anybody
        key = bearer_key(headers.get("authorization"))
        return None if key is None else find_caller(service.callers, key)

    def _record(self, call: Call) -> None:
        seconds = time.perf_counter() - call.started
        metrics = self._service.metrics
        metrics.requests.labels(call.route, str(call.status)).inc()
        metrics.request_seconds.labels(call.route).observe(seconds)
        if call.path in _QUIET and call.status in (200, 503):
            return
        usage = call.usage
        details = usage.prompt_tokens_details if usage is not None else None
        log(
            f"{call.method} {call.path[:200]} {call.status}",
            logging.WARNING if call.status >= 500 else logging.INFO,
            model=call.model,
            key=call.caller.name or None,
            prompt=usage.prompt_tokens if usage is not None else None,
            cached=details.cached_tokens if details is not None else None,
            output=usage.completion_tokens if usage is not None else None,
            finish=call.finish,
            first_token=call.first_token,
            seconds=seconds,
            error=call.error,
            id=call.id,
        )


def _no_key() -> ApiError:
    return ApiError(
        401,
        "This server needs an API key, and the request has none that is valid. Send the header "
        "Authorization: Bearer KEY.",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
