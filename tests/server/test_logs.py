"""Log lines: one a request, readable, or JSON; and nothing in them that a stranger could forge."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator

import httpx
import pytest

from firstlight.server.logs import LOGGER, log, start_logging
from tests.server.conftest import MODEL
from tests.support.http_server import Running


@pytest.fixture
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged while the test runs, in the form that it is parametrised with."""
    names = ("firstlight", "uvicorn.error")
    before = {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate)
        for name in names
    }
    stream = io.StringIO()
    start_logging(request.param, stream)
    yield stream
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(logging.NOTSET)


def ask(server: Running, written: io.StringIO) -> list[str]:
    """Make four requests; the lines of the three that are logged, by what is in them."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        body = {"model": MODEL, "prompt": "abc", "max_tokens": 4, "ignore_eos": True}
        http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
        http.post("/v1/completions", json={"model": MODEL})
        http.get("/health")
        http.get("/evil%0a12:00:00%20GET%20/forged%20200%1b[2J")
    end = time.monotonic() + 10  # a line is written after the answer
    while len(lines := written.getvalue().splitlines()) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    return sorted(lines, key=lambda line: [part in line for part in (" 404", " 400")])


@pytest.mark.parametrize("written", ["text"], indirect=True)
def test_lines_for_people(server: Running, written: io.StringIO) -> None:
    good, wrong, evil = ask(server, written)
    clock, rest = good.split(" ", 1)
    assert len(clock) == 8
    assert rest.startswith(f"POST /v1/completions 200  model={MODEL}  prompt=3  cached=0  output=4")
    assert "  finish=length  first_token=0." in rest
    assert rest.endswith("  id=mine")
    assert "POST /v1/completions 400" in wrong
    assert 'error="prompt is missing. It is required."' in wrong.replace("'", '"')
    assert "404" in evil
    assert "\x1b" not in evil


@pytest.mark.parametrize("written", ["json"], indirect=True)
def test_lines_for_programs(server: Running, written: io.StringIO) -> None:
    good, wrong, evil = map(json.loads, ask(server, written))
    assert good["event"] == "POST /v1/completions 200"
    assert (good["prompt"], good["output"], good["finish"]) == (3, 4, "length")
    assert good["level"] == "info"
    assert good["time"].endswith("+00:00")
    assert 0 < good["first_token"] <= good["seconds"]
    assert wrong["error"] == "prompt is missing. It is required."
    assert evil["event"].endswith(" 404")


@pytest.mark.parametrize("written", ["text", "json"], indirect=True)
def test_an_exception_is_told_with_its_trace(written: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        LOGGER.error("A request failed", exc_info=error)
    log("And on it goes", key=None, odd="a b\n")
    text = written.getvalue()
    assert "A request failed" in text and "ValueError: why" in text
    assert "key" not in text
    assert "a b" in text and "a b\n" not in text
