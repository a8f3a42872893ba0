"""The HTTP side in a thread of the test's process, on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

from firstlight.checkpoint.generation import GenerationDefaults
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.server.app import create_app
from firstlight.server.http_server import HttpServer, address_of, listen
from firstlight.server.served_model import ModelText, model_text
from firstlight.server.service import Service
from firstlight.server.token_streams import TokenSource


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: without a path.
    """

    url: str
    service: Service
    server: HttpServer

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """What SIGTERM does."""
        self.server.handle_exit(15, None)


def texts_of(
    name: str, tokenizer: Tokenizer, generation: GenerationDefaults | None = None
) -> Mapping[str, ModelText]:
    return {name: model_text(name, tokenizer, generation or GenerationDefaults())}


@contextmanager
def serving(
    source: TokenSource,
    texts: Mapping[str, ModelText],
    origins: Sequence[str] = (),
    tls: SSLContext | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serves until the block ends; `settings` are the service's."""
    service = Service(source, texts, **settings)
    listener = listen("127.0.0.1", 0)
    url = address_of(listener, tls is not None)
    server = HttpServer(create_app(service, origins), service, listener, tls)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server does not start"
        time.sleep(0.005)
    running = Running(url, service, server)
    try:
        yield running
    finally:
        running.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"
