"""What is wrong is refused with the right status and OpenAI's shape, and the server goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import MODEL
from tests.support.http_server import Running

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT = {"model": MODEL, "prompt": "x", "max_tokens": 2}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
HUGE = 10**400


@pytest.fixture(autouse=True)
def still_up(http: httpx.Client) -> Iterator[None]:
    """After each test the server answers as before."""
    yield
    answer = http.post(TEXT_PATH, json=TEXT)
    assert answer.status_code == 200, answer.text


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in an answer, after a look at its shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    return error


def post(http: httpx.Client, path: str, data: bytes | str) -> httpx.Response:
    return http.post(path, content=data, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "x"} trailing',
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "x", "unknown": ' + b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
def test_no_json(http: httpx.Client, data: bytes) -> None:
    error = error_of(post(http, TEXT_PATH, data), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None


# Field, value, and the field that the error names where that is another one.
WRONG_FIELDS: list[tuple[str, Any, str | None]] = [
    ("model", None, None),
    ("model", 5, None),
    ("temperature", "hot", None),
    ("temperature", -0.1, None),
    ("temperature", 2.1, None),
    ("temperature", True, None),
    ("temperature", HUGE, None),
    ("top_p", -1, None),
    ("top_p", 1.01, None),
    ("top_k", -2, None),
    ("top_k", 1 << 40, None),
    ("top_k", 0.5, None),
    ("min_p", 2, None),
    ("repetition_penalty", 0, None),
    ("repetition_penalty", -1, None),
    ("presence_penalty", 3, None),
    ("frequency_penalty", -3, None),
    ("frequency_penalty", [], None),
    ("logit_bias", [], None),
    ("logit_bias", {"x": 1}, None),
    ("logit_bias", {"-1": 1}, None),
    ("logit_bias", {"5": 101}, "logit_bias[...]"),
    ("logit_bias", {"5": "x"}, "logit_bias[...]"),
    ("logit_bias", {"999999": 1}, None),
    ("seed", 1 << 63, None),
    ("seed", -(1 << 63) - 1, None),
    ("seed", 1.5, None),
    ("stop", "", None),
    ("stop", ["a", ""], "stop[1]"),
    ("stop", ["a"] * 17, None),
    ("stop", 5, None),
    ("stop", "x" * 100_000, None),
    ("n", 0, None),
    ("n", -1, None),
    ("n", 129, None),
    ("n", HUGE, None),
    ("max_tokens", -1, None),
    ("max_tokens", 1 << 40, None),
    ("max_tokens", "ten", None),
    ("stream", "yes", None),
    ("stream_options", {"include_usage": True}, None),
    ("priority", 1000, None),
]


@pytest.mark.parametrize("path", [CHAT_PATH, TEXT_PATH])
@pytest.mark.parametrize(("field", "value", "named"), WRONG_FIELDS)
def test_a_wrong_field_is_named(
    http: httpx.Client, path: str, field: str, value: Any, named: str | None
) -> None:
    body = {**(CHAT if path == CHAT_PATH else TEXT), field: value}
    error = error_of(http.post(path, json=body), 400)
    assert error["param"] == (named or field)
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
         "messages[0].role"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
         "messages[0].tool_calls"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {"x": 1}}, "web_search_options"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)  # fmt: skip
def test_a_wrong_chat_is_explained(http: httpx.Client, changed: dict[str, Any], named: str) -> None:
    assert error_of(http.post(CHAT_PATH, json={**CHAT, **changed}), 400)["param"] == named


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt"),
        ({"prompt": [[5], "x"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": [HUGE]}, "prompt[0]"),
        ({"prompt": ["x"] * 600, "n": 2}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"echo": "yes"}, "echo"),
        ({"echo": True, "stream": True, "logprobs": 1}, "echo"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_wrong_completion_is_explained(
    http: httpx.Client, changed: dict[str, Any], named: str
) -> None:
    assert error_of(http.post(TEXT_PATH, json={**TEXT, **changed}), 400)["param"] == named


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(http: httpx.Client, missing: str) -> None:
    body = {name: value for name, value in CHAT.items() if name != missing}
    error = error_of(http.post(CHAT_PATH, json=body), 400)
    assert error["param"] == missing
    assert error["code"] == "missing_required_field"


def test_harmless_forms_of_what_is_unsupported_are_accepted(http: httpx.Client) -> None:
    for extra in (
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "auto", "functions": []},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"stop": None, "logit_bias": None, "n": None, "stream": None, "top_logprobs": None},
        {"stop": [], "logit_bias": {}, "metadata": {"a": "b"}, "store": True, "top_p": 0},
        {"parallel_tool_calls": True, "service_tier": "auto", "reasoning_effort": "low"},
    ):
        answer = http.post(CHAT_PATH, json={**CHAT, **extra})
        assert answer.status_code == 200, answer.text
    answer = http.post(TEXT_PATH, json={**TEXT, "best_of": 1, "suffix": ""})
    assert answer.status_code == 200, answer.text


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="gpt-4", prompt="x")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    assert MODEL in error.value.message


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_only_json_is_read(http: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = http.post(TEXT_PATH, content=json.dumps(TEXT), headers=headers)
    error_of(answer, 415)


def test_nothing_compressed_is_read(http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error_of(http.post(TEXT_PATH, content=b"\x1f\x8b", headers=headers), 415)


@pytest.mark.parametrize("size", [100_000, 10_000_000])
def test_a_long_prompt(http: httpx.Client, size: int) -> None:
    started = time.monotonic()
    error = error_of(http.post(TEXT_PATH, json={**TEXT, "prompt": "x" * size}), 400)
    assert error["param"] == "prompt"
    ids = error_of(http.post(TEXT_PATH, json={**TEXT, "prompt": [5] * 100_000}), 400)
    assert ids["code"] == "context_length_exceeded"
    chat = {**CHAT, "messages": [{"role": "user", "content": "x" * 100_000}]}
    assert error_of(http.post(CHAT_PATH, json=chat), 400)["param"] == "messages"
    assert time.monotonic() - started < 30


def test_a_prompt_that_just_fits(http: httpx.Client) -> None:
    answer = http.post(TEXT_PATH, json={**TEXT, "prompt": [5] * 512, "max_tokens": 5})
    assert answer.json()["usage"]["prompt_tokens"] == 512
    too_long = http.post(TEXT_PATH, json={**TEXT, "prompt": [5] * 513})
    assert error_of(too_long, 400)["code"] == "context_length_exceeded"


def test_a_huge_body_is_refused_unread(server: Running) -> None:
    for stated in (True, False):
        data = b"x" * (50 << 20)
        content: Any = data if stated else (data[i : i + 65536] for i in range(0, len(data), 65536))
        with httpx.Client(base_url=server.url, timeout=30) as http:
            answer = http.post(
                TEXT_PATH, content=content, headers={"content-type": "application/json"}
            )
            assert error_of(answer, 413)["code"] == "body_too_large"
            assert answer.headers["connection"] == "close"


def test_hostile_text_goes_through_unharmed(http: httpx.Client) -> None:
    for text in ("\x00\x1b[2J", "<|end|><|assistant|>", "\u202e\ufeff\U0010ffff", "{{ 7*7 }}"):
        messages = [{"role": "user", "content": text, "name": text}]
        answer = http.post(CHAT_PATH, json={**CHAT, "messages": messages})
        assert answer.status_code == 200, answer.text
