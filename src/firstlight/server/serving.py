"""Serving models: the router with its replicas, and the HTTP side over it, from start to end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from firstlight.errors import FirstlightError
from firstlight.replica.messages import ModelOptions
from firstlight.server.api_keys import Caller
from firstlight.server.app import create_app
from firstlight.server.http_server import HttpServer, address_of, connections_allowed
from firstlight.server.limits import Limits
from firstlight.server.logs import log
from firstlight.server.router import Limits as RouterLimits
from firstlight.server.router import Router
from firstlight.server.served_model import ModelText
from firstlight.server.service import Service


@dataclass(frozen=True)
class Settings:
    """What is served, how, and to whom.

    Attributes:
        models: what replicas load, by the name that it is served under.
        texts: the same models' words.
        devices: each model gets a replica on each.
        callers: whose keys are good; empty: no key is needed.
        anybody: the limits where no key is needed.
        origins: see `create_app`.
        share_prefixes: see `Service`.
        share_cores: see `Router`.
    """

    models: Mapping[str, ModelOptions]
    texts: Mapping[str, ModelText]
    devices: Sequence[str] = ("cpu",)
    limits: Limits = field(default_factory=Limits)
    router_limits: RouterLimits = field(default_factory=RouterLimits)
    callers: tuple[Caller, ...] = ()
    anybody: Caller = field(default_factory=lambda: Caller(""))
    origins: Sequence[str] = ()
    share_prefixes: bool = False
    share_cores: bool = True


def serve(settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
    """Serve on a socket until SIGTERM or SIGINT, and then until running requests are answered.

    Raises:
        FirstlightError: a model cannot be loaded.
    """
    asyncio.run(_serve(settings, listener, tls))


async def _serve(settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    limits = settings.limits
    limits = replace(limits, connections=connections_allowed(limits.connections))
    router = Router(settings.models, settings.devices, settings.router_limits, settings.share_cores)
    service = Service(
        router,
        settings.texts,
        limits,
        settings.callers,
        settings.anybody,
        settings.share_prefixes,
    )
    server = HttpServer(create_app(service, settings.origins), service, listener, tls)
    log("Loading", models=", ".join(settings.models), replicas=", ".join(settings.devices))
    await router.start()
    loading = asyncio.create_task(_announce(router, server, address_of(listener, tls is not None)))
    try:
        await server.serve()
        if loading.done():
            loading.result()
            if not server.force_exit:
                await router.drain()
    finally:
        loading.cancel()
        await router.stop()
    log("Stopped")


async def _announce(router: Router, server: HttpServer, address: str) -> None:
    """Say when the models are ready; where one cannot be loaded, have the server stop."""
    try:
        await router.wait_ready()
    except FirstlightError:
        server.should_exit = True
        raise
    log(f"Ready at {address}/v1", docs=f"{address}/docs")
