"""A server of OpenAI's completions API on the loopback interface, that answers what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """How the server behaves, and what it was asked.

    Attributes:
        usage: say at the end of a stream how many tokens there were.
        fail: numbers of requests (0 is the first) that get `status` and an error in its body.
        break_off: numbers of requests whose stream holds an error half-way.
        gate: answers wait for it.
    """

    usage: bool = True
    fail: frozenset[int] = frozenset()
    break_off: frozenset[int] = frozenset()
    status: int = 503
    gate: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def completions_server(script: Script) -> Iterator[str]:
    """The address of a server that follows the script."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._json(200, {"object": "list", "data": [{"id": "one", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with script.lock:
                number = len(script.bodies)
                script.bodies.append({"path": self.path, **body})
                script.keys.append(self.headers["authorization"])
                script.open_now += 1
                script.most_open = max(script.most_open, script.open_now)
            script.gate.wait(10)
            try:
                if number in script.fail:
                    self._json(script.status, {"error": {"message": "too busy"}})
                else:
                    self._stream(body, number in script.break_off)
            finally:
                with script.lock:
                    script.open_now -= 1

        def _json(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, body: dict[str, Any], breaks: bool) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": a comment\n\n")
            for index in range(body["max_tokens"]):
                if breaks and index == 1:
                    self._event({"error": {"message": "lost"}})
                    return
                # The first event of a chat has a role and no text; it is no token.
                delta = {"delta": {"content": "x"}} if "messages" in body else {"text": "x"}
                if index == 0 and "messages" in body:
                    self._event({"choices": [{"delta": {"role": "assistant"}}]})
                self._event({"choices": [delta]})
            if script.usage:
                counted = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"] + 1}
                self._event({"choices": [], "usage": counted})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, value: Any) -> None:
            data = f"data: {json.dumps(value)}\n\n".encode()
            self.wfile.write(data[:9])  # events come cut anywhere
            self.wfile.flush()
            self.wfile.write(data[9:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        script.gate.set()
        server.shutdown()
        server.server_close()
