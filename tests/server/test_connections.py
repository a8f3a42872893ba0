"""Connections: clients that leave, stall, dribble, flood; TLS; and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from firstlight.errors import DeviceError, RequestError
from firstlight.language_model import LanguageModel
from firstlight.server.http_server import listen, tls_context
from firstlight.server.limits import Limits
from tests.server.conftest import MODEL
from tests.support.http_server import Running, serving, texts_of
from tests.support.tls_files import CERTIFICATE, KEY
from tests.support.token_sources import ScriptedSource, overloaded

ASK = {"model": MODEL, "prompt": "x", "max_tokens": 4000, "stream": True}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def start(oracle: LanguageModel) -> Iterator[Callable[..., Running]]:
    """Starts servers over a script, with limits of a test's own."""
    assert oracle.tokenizer is not None
    texts = texts_of(MODEL, oracle.tokenizer)
    with contextlib.ExitStack() as stack:

        def started(source: ScriptedSource, tls: Any = None, **limits: Any) -> Running:
            return stack.enter_context(serving(source, texts, tls=tls, limits=Limits(**limits)))

        yield started


def slow(seconds: float = 0.01, tokens: int = 4000) -> ScriptedSource:
    return ScriptedSource(MODEL, [40] * tokens, pause=seconds)


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=20)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never comes to that"
        time.sleep(0.01)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    return data


def fine(running: Running) -> None:
    assert httpx.get(f"{running.url}/health", timeout=20).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_sequences(
    start: Callable[..., Running], stream: bool
) -> None:
    source = slow()
    running = start(source)
    body = json.dumps({**ASK, "stream": stream, "n": 3}).encode()
    with connect(running) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: len(source.streams) == 3)
        if stream:
            assert connection.recv(100)
        assert not any(each.cancelled for each in source.streams)
    until(lambda: all(each.cancelled for each in source.streams))
    until(lambda: running.service.running == 0)


def test_leaving_a_stream_of_the_client_ends_it(start: Callable[..., Running]) -> None:
    source = slow()
    running = start(source)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=4000, stream=True)
        next(iter(stream))
        stream.close()
    until(lambda: source.streams[0].cancelled)


def test_a_reader_that_stalls_is_let_go(start: Callable[..., Running]) -> None:
    source = ScriptedSource(MODEL, [40] * 200_000, context_length=1 << 20)
    running = start(source, stall_seconds=0.3)
    body = json.dumps({**ASK, "max_tokens": 200_000}).encode()
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: bool(source.streams) and source.streams[0].cancelled)
    fine(running)


def test_a_slow_reader_gets_everything(start: Callable[..., Running]) -> None:
    source = ScriptedSource(MODEL, [40] * 3000)
    running = start(source, stall_seconds=5)
    body = json.dumps({**ASK, "max_tokens": 3000}).encode()
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.sendall(
            HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        data = b""
        while part := connection.recv(20_000):
            data += part
            time.sleep(0.001)
    assert data.count(b'"text":"') == 3000
    assert b"[DONE]" in data


def test_silence_is_filled_with_comments(start: Callable[..., Running]) -> None:
    running = start(ScriptedSource(MODEL, [40], delay=0.5), comment_seconds=0.1)
    with httpx.stream("POST", f"{running.url}/v1/completions", json=ASK, timeout=20) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines.count(": waiting") >= 3
    assert lines[-1] == "data: [DONE]"
    assert len([line for line in lines if line.startswith("data: {")]) == 1
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        chunks = client.completions.create(model=MODEL, prompt="x", stream=True)
        assert [chunk.choices[0].finish_reason for chunk in chunks] == ["stop"]


def test_a_failure_before_the_first_token_has_its_status(start: Callable[..., Running]) -> None:
    source = ScriptedSource(MODEL, [], error=DeviceError("cpu", "is on fire", "Run"))
    running = start(source)
    for stream in (False, True):
        answer = httpx.post(f"{running.url}/v1/completions", json={**ASK, "stream": stream})
        assert answer.status_code == 500
        assert "is on fire" in answer.json()["error"]["message"]


def test_a_failure_in_a_stream_is_an_event(start: Callable[..., Running]) -> None:
    error = RequestError("logit_bias", "became impossible", "Leave it out")
    running = start(ScriptedSource(MODEL, [40, 41], error=error))
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        got = []
        with pytest.raises(openai.APIError, match="became impossible") as raised:
            for chunk in client.completions.create(model=MODEL, prompt="x", stream=True):
                got.append(chunk.choices[0].text)
        assert len(got) == 2
        assert raised.value.param == "logit_bias"
    whole = httpx.post(f"{running.url}/v1/completions", json={**ASK, "stream": False})
    assert whole.status_code == 400


def test_one_choice_that_fails_ends_the_others(start: Callable[..., Running]) -> None:
    source = ScriptedSource(MODEL, [40], error=DeviceError("cpu", "is on fire", "Run"))
    running = start(source)
    body = {**ASK, "n": 4, "stream": False}
    assert httpx.post(f"{running.url}/v1/completions", json=body).status_code == 500
    until(lambda: all(each.cancelled for each in source.streams))


@pytest.mark.parametrize(("draining", "status"), [(False, 429), (True, 503)])
def test_too_much_to_do(start: Callable[..., Running], draining: bool, status: int) -> None:
    source = slow()
    running = start(source)
    source.refuse = overloaded(draining)
    answer = httpx.post(f"{running.url}/v1/completions", json=ASK)
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["code"] == ("draining" if draining else "overloaded")


def test_all_of_a_request_or_none(start: Callable[..., Running]) -> None:
    source = slow()
    running = start(source)
    opened = source.open

    def two_at_most(model: str, request: Any) -> Any:
        if len(source.streams) >= 2:
            raise overloaded()
        return opened(model, request)

    source.open = two_at_most  # type: ignore[method-assign]
    answer = httpx.post(f"{running.url}/v1/completions", json={**ASK, "n": 3})
    assert answer.status_code == 429
    assert [each.cancelled for each in source.streams] == [True, True]


# Clients that mean no good ---------------------------------------------------------------------


def test_headers_that_dribble_are_cut_off(start: Callable[..., Running]) -> None:
    running = start(slow(), header_seconds=0.4)
    with connect(running) as connection:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"X")
                time.sleep(0.02)
        assert time.monotonic() - started < 3
    fine(running)


def test_the_second_request_of_a_connection_may_not_dribble_either(
    start: Callable[..., Running],
) -> None:
    running = start(slow(), header_seconds=0.4)
    with connect(running) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"X")
                time.sleep(0.02)
        assert time.monotonic() - started < 3
    fine(running)


def test_a_body_that_dribbles_is_refused(start: Callable[..., Running]) -> None:
    running = start(slow(), body_seconds=0.3, linger_seconds=0.1)
    with connect(running) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer
    fine(running)


def test_many_half_open_connections_are_bounded(start: Callable[..., Running]) -> None:
    running = start(slow(), connections=40, header_seconds=30)
    flood = []
    try:
        for _ in range(400):
            flood.append(connect(running))
            flood[-1].sendall(b"POST /v1/comp")
        fine(running)
        assert len(running.server.server_state.connections) <= 40
    finally:
        for connection in flood:
            connection.close()
    fine(running)


def test_a_flood_does_not_end_what_runs(start: Callable[..., Running]) -> None:
    source = slow(0.005, tokens=200)
    running = start(source, connections=10, header_seconds=30)
    with httpx.stream("POST", f"{running.url}/v1/completions", json=ASK, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        flood = [connect(running) for _ in range(100)]
        text = [line for line in lines if line.startswith("data: {")]
        for connection in flood:
            connection.close()
    assert len(text) >= 199


def test_where_all_connections_work_a_new_one_is_refused(start: Callable[..., Running]) -> None:
    source = slow()
    running = start(source, connections=2)
    body = json.dumps(ASK).encode()
    with connect(running) as first, connect(running) as second:
        for connection in (first, second):
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(100)
        with connect(running) as third:
            answer = rest_of(third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    until(lambda: running.service.running == 0)
    fine(running)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
        b"GET /health HTTP/1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5, 6\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
        b"GET /%ff%00%2e%2e/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://elsewhere/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade, close\r\n\r\n",
    ],
)
def test_no_http(start: Callable[..., Running], data: bytes) -> None:
    running = start(slow(), header_seconds=5, body_seconds=1, linger_seconds=0.1)
    with connect(running) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        answer = rest_of(connection)
    if answer:  # a reset may have come before the answer was read
        status = int(answer.split(b" ")[1])
        assert 400 <= status < 500
        assert b'{"error":{' in answer
    fine(running)


def test_what_lies_in_one_packet_is_answered_in_order(start: Callable[..., Running]) -> None:
    running = start(slow())
    with connect(running) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = rest_of(connection)
    assert answer.index(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 404 ")


# TLS, and the end --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "certificate.pem").write_text(CERTIFICATE)
    (folder / "key.pem").write_text(KEY)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls(start: Callable[..., Running], certificate: tuple[Path, Path]) -> None:
    running = start(ScriptedSource(MODEL, [40, 41]), tls=tls_context(*certificate))
    assert running.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    with httpx.Client(verify=trusting, base_url=running.url) as http:
        assert http.get("/health").status_code == 200
        with http.stream("POST", "/v1/completions", json=ASK) as answer:
            assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
        # What is sent before TLS begins does no harm.
        with connect(running) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            rest_of(connection)
        assert http.get("/health").status_code == 200


def test_no_certificate(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    for pair in ((tmp_path / "x.pem", tmp_path / "x.pem"), (tmp_path / "no", certificate[1])):
        with pytest.raises(RequestError, match="PEM"):
            tls_context(*pair)


def test_an_address_that_cannot_be_used() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        for host, at in (("127.0.0.1", port), ("no.such.host.invalid", 80), ("192.0.2.1", 80)):
            with pytest.raises(RequestError, match="listened"):
                listen(host, at)


def test_no_accepted_request_is_lost(start: Callable[..., Running]) -> None:
    source = slow(0.005, tokens=150)
    running = start(source)
    texts: list[int] = []

    def ask() -> None:
        with httpx.stream("POST", f"{running.url}/v1/completions", json=ASK, timeout=30) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        texts.append(len(lines) - 1)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    until(lambda: len(source.streams) == 16)
    running.stop()
    until(lambda: running.service.draining)
    ready = httpx.get(f"{running.url}/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    late = httpx.post(f"{running.url}/v1/completions", json=ASK)
    assert late.status_code == 503
    assert int(late.headers["retry-after"]) > 0
    for thread in threads:
        thread.join(30)
    assert texts == [150] * 16
    until(lambda: _closed(running))


def _closed(running: Running) -> bool:
    with contextlib.suppress(OSError), connect(running):
        return False
    return True


def test_a_second_signal_ends_it_at_once(oracle: LanguageModel) -> None:
    assert oracle.tokenizer is not None
    source = slow(0.01, tokens=100_000)
    body = json.dumps({**ASK, "max_tokens": 100_000}).encode()
    texts = texts_of(MODEL, oracle.tokenizer)
    with serving(source, texts) as running, connect(running) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(100)
        running.stop()
        until(lambda: running.service.draining)
        running.stop()
        rest_of(connection)


def test_a_long_prompt_holds_up_nobody(start: Callable[..., Running], monkeypatch: Any) -> None:
    """While one prompt is being encoded, in a thread, other streams go on."""
    source = slow(0.002, tokens=100)
    running = start(source)
    text = running.service.texts[MODEL]
    begun, go_on = threading.Event(), threading.Event()
    encode = text.tokenizer.encode

    def slow_encode(prompt: str, *rest: Any, **more: Any) -> list[int]:
        if prompt == "slow":
            begun.set()
            go_on.wait(20)
        return encode(prompt, *rest, **more)

    monkeypatch.setattr(text.tokenizer, "encode", slow_encode)
    answers: list[int] = []

    def ask_slow() -> None:
        body = {"model": MODEL, "prompt": "slow", "max_tokens": 1}
        url = f"{running.url}/v1/completions"
        answers.append(httpx.post(url, json=body, timeout=30).status_code)

    thread = threading.Thread(target=ask_slow)
    thread.start()
    assert begun.wait(10)
    assert httpx.post(f"{running.url}/v1/completions", json=ASK, timeout=20).status_code == 200
    assert answers == []
    go_on.set()
    thread.join(20)
    assert answers == [200]


def test_sixty_four_streams_at_once(start: Callable[..., Running]) -> None:
    source = ScriptedSource(MODEL, [40] * 50, pause=0.001)
    running = start(source)

    async def ask(client: httpx.AsyncClient) -> int:
        async with client.stream("POST", "/v1/completions", json=ASK) as answer:
            return len([line async for line in answer.aiter_lines() if line]) - 1

    async def ask_all() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=running.url, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(ask(client) for _ in range(64)))

    assert asyncio.run(ask_all()) == [50] * 64
