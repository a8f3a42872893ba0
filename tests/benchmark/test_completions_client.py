"""What the client takes from a server's streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firstlight.benchmark.completions_client import CompletionsClient, api_base
from firstlight.benchmark.load import Load, Record, run_load
from firstlight.errors import RequestError
from tests.support.completions_server import Script, completions_server


def run(script: Script, load: Load, **settings: Any) -> list[Record]:
    script.gate.set()

    async def measure(url: str) -> list[Record]:
        prompts = settings.pop("prompts", [[1, 2, 3]] * load.requests)
        async with CompletionsClient(url, "one", prompts, 5, **settings) as client:
            assert await client.models() == ["one"]
            return await run_load(load, client.send, lambda _: None)

    with completions_server(script) as url:
        return asyncio.run(measure(url))


def test_tokens_and_times_of_completions() -> None:
    script = Script()
    (record,) = run(script, Load(1, concurrency=1), prompts=[[5, 6, 7]], api_key="secret")
    assert record.error == ""
    assert len(record.tokens_at) == 5
    assert record.arrived < record.tokens_at[0] <= record.tokens_at[-1] <= record.ended
    assert (record.prompt_tokens, record.output_tokens) == (7, 6)  # as the server counted
    (body,) = script.bodies
    assert body["path"] == "/v1/completions"
    assert body["prompt"] == [5, 6, 7]
    assert body["ignore_eos"] is True
    assert body["stream"] is True
    assert script.keys == ["Bearer secret"]


def test_chat_counts_text_only() -> None:
    script = Script(usage=False)
    (record,) = run(script, Load(1, concurrency=1), prompts=["hello"], chat=True, ignore_end=False)
    assert len(record.tokens_at) == record.output_tokens == 5  # without usage, pieces count
    (body,) = script.bodies
    assert body["path"] == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert "ignore_eos" not in body


def test_a_refused_request_and_a_stream_that_breaks_off_are_errors() -> None:
    script = Script(fail=frozenset({1}), break_off=frozenset({2}))
    records = run(script, Load(4, concurrency=1))
    assert [bool(record.error) for record in records] == [False, True, True, False]
    assert "status 503: too busy" in records[1].error
    assert "lost" in records[2].error


def test_no_more_are_open_than_asked() -> None:
    script = Script()
    run(script, Load(12, concurrency=3))
    assert script.most_open <= 3
    assert len(script.bodies) == 12


def test_addresses() -> None:
    assert api_base("http://a:1") == "http://a:1/v1/"
    assert api_base("http://a:1/v1/") == "http://a:1/v1/"
    assert api_base("https://a/api/v1") == "https://a/api/v1/"
    with pytest.raises(RequestError, match="no http address"):
        api_base("a:1")


def test_no_server_is_said_with_what_to_do() -> None:
    async def ask() -> None:
        async with CompletionsClient("http://127.0.0.1:9", "", [], 1) as client:
            await client.models()

    with pytest.raises(RequestError, match="Start the server first"):
        asyncio.run(ask())
