"""HTTP over one connection, with bounds that uvicorn leaves out."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from firstlight.server.api_error import INVALID_REQUEST, SERVER, ApiError, error_bytes
from firstlight.server.limits import Limits
from firstlight.server.metrics import Metrics


class Connections:
    """Those that are open.

    Attributes:
        waiting: those without a request in progress, the one that has waited longest first.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.open: set[BoundedProtocol] = set()
        self.waiting: dict[BoundedProtocol, None] = {}

    def make_room(self) -> bool:
        """Close the one that has waited longest where there are too many; False if all work."""
        while len(self.open) >= self.limits.connections:
            if not self.waiting:
                return False
            next(iter(self.waiting)).abort()
        return True


class BoundedProtocol(H11Protocol):
    """Closes a connection whose request's headers do not come in time (slow-loris), or whose
    client takes nothing of its answer; and keeps to the number of connections there may be."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._table = connections
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._table.make_room():
            self._refuse(503, "Too many connections. Try again in a while.", "too_many_connections")
            return
        self._table.open.add(self)
        self._table.metrics.connections.set(len(self._table.open))
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close without a word; whoever writes to it learns that it is gone."""
        self._forget()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._request_came()
        elif self._header_timer is None:
            self._wait_for_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._table.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; uvicorn's own answer is plain text."""
        self._refuse(400, "The request is no valid HTTP.", "invalid_http")

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._table.limits.stall_seconds
        self._stall_timer = self.loop.call_later(seconds, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _wait_for_request(self) -> None:
        self._table.waiting[self] = None
        seconds = self._table.limits.header_seconds
        self._header_timer = self.loop.call_later(seconds, self.abort)

    def _request_came(self) -> None:
        self._table.waiting.pop(self, None)
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _forget(self) -> None:
        self._request_came()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._table.open.discard(self)
        self._table.metrics.connections.set(len(self._table.open))

    def _refuse(self, status: int, message: str, code: str) -> None:
        kind = INVALID_REQUEST if status < 500 else SERVER
        body = error_bytes(ApiError(status, message, kind, code=code))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            response = h11.Response(status_code=status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
