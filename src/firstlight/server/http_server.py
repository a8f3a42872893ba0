"""Running the application on a socket until it is told to stop, and then bringing it to an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from firstlight.errors import RequestError
from firstlight.server.http_protocol import BoundedProtocol, Connections
from firstlight.server.logs import log
from firstlight.server.service import Service

_BACKLOG = 1024
_SPARE_FILES = 200  # descriptors that are not connections: weights, sockets to replicas, pipes
_HANDSHAKE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT. Then requests that are running are answered to their end,
    new ones are refused with 503, and only when none is left does it stop listening; a second
    signal ends it at once."""

    def __init__(
        self,
        app: Starlette,
        service: Service,
        listener: socket.socket,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        limits = service.limits
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(limits.keep_alive_seconds),
            backlog=_BACKLOG,
        )
        super().__init__(config)
        self._service = service
        self._listener = listener
        self._tls = tls
        self._connections = Connections(limits, service.metrics)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=self._listener,
            ssl=self._tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._tls is not None else None,
        )
        self.servers = [server]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        return BoundedProtocol(self.config, self.server_state, {}, self._connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal once more at the end, and the exit code would tell of a
        # violent end where there was none.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self._service
        service.draining = True
        if service.running:
            log("Stopping when running requests are done", running=service.running)
        while service.running and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)
        await super().shutdown(sockets)
        service.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is any that is free.

    Raises:
        RequestError: the address cannot be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise RequestError(
            f"{host}:{port}",
            f"cannot be listened at ({error})",
            "Give another --host or --port, or stop what uses this one",
        ) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, secure: bool = False) -> str:
    """The URL that a socket is reached at."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer, with a certificate (chain) and its key from PEM files.

    Raises:
        RequestError: they cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise RequestError(
            f"{certificate}, {key}",
            f"are no certificate and key ({error})",
            "Give PEM files that belong together",
        ) from None
    return context


def connections_allowed(wanted: int) -> int:
    """`wanted`, or as many as the system lets this process have open beside its other files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = wanted + _SPARE_FILES
        if soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        allowed = max(1, min(wanted, soft - _SPARE_FILES))
        if allowed < wanted:
            log("The system allows fewer connections", logging.WARNING, connections=allowed)
        return allowed
    return wanted
