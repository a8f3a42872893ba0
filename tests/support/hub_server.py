"""A hub on the loopback interface: the part of the hub's HTTP interface that clients use.

It can also misbehave on demand: break a transfer off, send wrong bytes, ignore ranges, refuse.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    """A repository with one commit, which its branch "main" points to.

    Attributes:
        files: name -> content.
        large: names of the files in large-file storage; they are served by redirection.
        gated: only requests with `token` get contents.
        private: only requests with `token` see anything.
    """

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    commit: str = "a" * 40
    revisions: set[str] = field(default_factory=lambda: {"main"})
    gated: bool = False
    private: bool = False
    token: str = "let-me-in"

    def digest(self, name: str) -> str:
        content = self.files[name]
        if name in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    def siblings(self) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = []
        for name, content in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name in self.large:
                entry["blobId"] = hashlib.sha1(name.encode()).hexdigest()
                entry["lfs"] = {
                    "sha256": self.digest(name),
                    "size": len(content),
                    "pointerSize": 134,
                }
            else:
                entry["blobId"] = self.digest(name)
            listed.append(entry)
        return listed


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


class _QuietServer(ThreadingHTTPServer):
    """Says nothing where a client hangs up, which is what some tests have it do: a traceback on
    the same standard error would pass for the command's own."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@dataclass
class HubServer:
    """What the server offers, how it misbehaves, and what it was asked.

    Attributes:
        repositories: id -> repository.
        break_after: name -> for each of the next transfers, after how many bytes the connection
            is cut; None lets one through.
        instead: name -> the bytes that are sent although others are announced.
        ignore_ranges: answer every request for a part with the whole.
        answer_all: a status that every request gets.
        listing: replaces the listing's JSON.
        stall: name -> an event that a transfer waits for after its first half.
    """

    port: int = 0
    repositories: dict[str, Repository] = field(default_factory=dict)
    break_after: dict[str, list[int | None]] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)
    ignore_ranges: bool = False
    answer_all: int | None = None
    listing: bytes | None = None
    stall: dict[str, threading.Event] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    bytes_sent: Counter[str] = field(default_factory=Counter)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def content_host(self) -> str:
        """The same server under another name, as a hub's large files lie on another host."""
        return f"http://localhost:{self.port}"

    def transfers(self, name: str) -> list[Request]:
        """The requests that got (a part of) a file's content."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and request.path.endswith("/" + name)
            and not (request.path.count("/resolve/") and self._is_large(request.path))
        ]

    def _is_large(self, path: str) -> bool:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        return found is not None and found[2] in self.repositories[found[1]].large


@contextmanager
def isolated_hub(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[HubServer]:
    """A hub, and a process that has no tokens, caches or settings but those in `directory`."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(directory / "own"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(directory / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(directory / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Else the oracle asks the public hub for a list before its first request.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    huggingface_hub.close_session()
    with hub_server() as server:
        yield server
    huggingface_hub.close_session()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run a hub on a free port of the loopback interface."""
    hub = HubServer()
    server = _QuietServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for event in hub.stall.values():
            event.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            hub.requests.append(Request(self.command, path, headers))
            if hub.answer_all is not None:
                self._send(hub.answer_all, b"")
                return
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            content = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            stored = re.fullmatch(r"/stored/([^/]+/[^/]+)/(.+)", path)
            found = listing or content or stored
            repository = hub.repositories.get(found[1]) if found else None
            admitted = repository is not None and (
                headers.get("authorization") == f"Bearer {repository.token}"
            )
            if found is None or repository is None or (repository.private and not admitted):
                # A real hub says 401 to strangers for what it lacks and for what it hides.
                self._send(404 if admitted else 401, b"", {"X-Error-Code": "RepoNotFound"})
            elif listing:
                self._list(found[1], repository, listing[2] or "main")
            elif content:
                self._resolve(found[1], repository, content[2], content[3], admitted)
            else:
                self._send_content(repository.files[found[2]], found[2])

        def _list(self, id: str, repository: Repository, revision: str) -> None:
            if not self._known(repository, revision):
                return
            body = {"id": id, "sha": repository.commit, "siblings": repository.siblings()}
            self._send(200, hub.listing or json.dumps(body).encode())

        def _resolve(
            self, id: str, repository: Repository, revision: str, name: str, admitted: bool
        ) -> None:
            if not self._known(repository, revision):
                return
            if name not in repository.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if repository.gated and not admitted:
                self._send(401, b"", {"X-Error-Code": "GatedRepo"})
                return
            headers = {"X-Repo-Commit": repository.commit}
            if name in repository.large:
                headers["X-Linked-Etag"] = f'"{repository.digest(name)}"'
                headers["X-Linked-Size"] = str(len(repository.files[name]))
                headers["Location"] = f"{hub.content_host}/stored/{id}/{name}"
                self._send(302, b"", headers)
            else:
                headers["ETag"] = f'"{repository.digest(name)}"'
                self._send_content(repository.files[name], name, headers)

        def _known(self, repository: Repository, revision: str) -> bool:
            if revision in {*repository.revisions, repository.commit}:
                return True
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return False

        def _send_content(
            self, content: bytes, name: str, headers: dict[str, str] | None = None
        ) -> None:
            content = hub.instead.get(name, content)
            headers = {"Accept-Ranges": "bytes", **(headers or {})}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None or hub.ignore_ranges:
                self._send(200, content, headers, name)
                return
            start = int(asked[1])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            part = content[start : int(asked[2]) + 1 if asked[2] else None]
            last = start + len(part) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._send(206, part, headers, name)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = ""
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            breaks = hub.break_after.get(name)
            limit = breaks.pop(0) if breaks else None
            if name in hub.stall:
                self._write(body[: len(body) // 2], name)
                hub.stalled.set()
                hub.stall[name].wait(30)
                self._write(body[len(body) // 2 :], name)
            else:
                self._write(body if limit is None else body[:limit], name)
            if limit is not None:
                self.close_connection = True

        def _write(self, part: bytes, name: str) -> None:
            # Counted first: whoever has received the bytes finds them counted.
            if name:
                hub.bytes_sent[name] += len(part)
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except OSError:  # the client has gone
                if name:
                    hub.bytes_sent[name] -= len(part)
                self.close_connection = True

    return Handler
