"""API keys, what each may use, and web pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from firstlight.errors import RequestError
from firstlight.language_model import LanguageModel
from firstlight.server.api_error import ApiError
from firstlight.server.api_keys import Caller, bearer_key, find_caller, read_api_keys
from firstlight.server.rate_limits import RateLimits
from tests.server.conftest import MODEL
from tests.support.http_server import Running, serving, texts_of
from tests.support.token_sources import ScriptedSource

KEYS = """\
# who may ask
sk-alice-secret alice priority=2

sk-bob-secret-1 bob requests=3 tokens=1000   # slow down, Bob
sk-nameless-one
sk-dora-secret- dora tokens=40
"""
ASK: Any = {"model": MODEL, "prompt": "x" * 10, "max_tokens": 4}


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Caller, ...]:
    return read_api_keys(key_file(tmp_path_factory.mktemp("keys"), KEYS))


def key_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def source(oracle: LanguageModel) -> ScriptedSource:
    assert oracle.tokenizer is not None
    return ScriptedSource(MODEL, oracle.tokenizer.encode("abcdefgh"))


@pytest.fixture
def guarded(
    oracle: LanguageModel, source: ScriptedSource, callers: tuple[Caller, ...]
) -> Iterator[Running]:
    assert oracle.tokenizer is not None
    with serving(source, texts_of(MODEL, oracle.tokenizer), callers=callers) as running:
        yield running


def as_caller(running: Running, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


def test_a_file_of_keys(callers: tuple[Caller, ...]) -> None:
    alice, bob, nameless, dora = callers
    assert (alice.name, alice.priority, alice.requests_per_minute) == ("alice", 2, None)
    assert (bob.name, bob.requests_per_minute, bob.tokens_per_minute) == ("bob", 3, 1000)
    assert (nameless.name, dora.tokens_per_minute) == ("key-5", 40)
    assert find_caller(callers, "sk-bob-secret-1") is bob
    assert find_caller(callers, "sk-bob-secret-") is None
    assert find_caller(callers, "") is None
    assert "secret" not in repr(callers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("# nothing\n", "no key"),
        ("short\n", "line 1"),
        ("sk-12345678 a\nsk-12345678 b\n", "twice"),
        ("sk-12345678 a\nsk-87654321 a\n", "twice"),
        ("sk-12345678 a requests=0\n", "line 1"),
        ("sk-12345678 a requests=many\n", "line 1"),
        ("sk-12345678 a speed=5\n", "line 1"),
        ("sk-12345678 a b\n", "line 1"),
        ("sk-12345678 a tokens=1 tokens=2\n", "line 1"),
    ],
)
def test_wrong_files_of_keys(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        read_api_keys(key_file(tmp_path, text))
    assert "12345678" not in str(error.value)


def test_no_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        read_api_keys(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError):
        read_api_keys(tmp_path / "bytes")


def test_a_file_that_others_can_read(tmp_path: Path) -> None:
    path = key_file(tmp_path, KEYS)
    path.chmod(0o644)
    with pytest.warns(UserWarning, match="can read"):
        read_api_keys(path)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("BEARER a b", "a b"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_the_key_in_a_header(header: str | None, key: str | None) -> None:
    assert bearer_key(header) == key


def test_a_key_is_needed(guarded: Running) -> None:
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        answer = httpx.get(guarded.url + path)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    with (
        as_caller(guarded, "sk-alice-secrex") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(**ASK)
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert httpx.get(guarded.url + path).status_code == 200
    strange = httpx.get(f"{guarded.url}/v1/models", headers={b"authorization": b"Bearer \xff\xfe"})
    assert strange.status_code == 401


def test_a_key_is_a_tenant_with_a_priority(guarded: Running, source: ScriptedSource) -> None:
    with as_caller(guarded, "sk-alice-secret") as client:
        client.completions.create(**ASK)
        client.completions.create(**ASK, extra_body={"priority": 99})
        client.completions.create(**ASK, extra_body={"priority": -5})
    assert [request.tenant for request in source.requests] == ["alice"] * 3
    assert [request.priority for request in source.requests] == [2, 2, -5]


def test_requests_a_minute(guarded: Running) -> None:
    with as_caller(guarded, "sk-bob-secret-1") as client:
        for left in (2, 1, 0):
            raw = client.completions.with_raw_response.create(**ASK)
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
            assert raw.headers["x-ratelimit-limit-tokens"] == "1000"
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(**ASK)
        assert error.value.code == "rate_limit_exceeded"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 21
        assert client.models.list().data  # only what costs is counted
    with as_caller(guarded, "sk-alice-secret") as client:
        client.completions.create(**ASK)  # others are not held up


def test_tokens_a_minute(guarded: Running) -> None:
    with as_caller(guarded, "sk-dora-secret-") as client:
        client.completions.create(**{**ASK, "prompt": "x" * 400})  # of 40, which is overdrawn
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(**ASK)
        assert "tokens a minute" in error.value.message


def test_allowances_come_back_with_time() -> None:
    now = 1000.0
    rates = RateLimits(lambda: now)
    caller = Caller("x", b"", requests_per_minute=2, tokens_per_minute=60)
    rates.take(caller)
    rates.take(caller)
    with pytest.raises(ApiError) as error:
        rates.take(caller)
    assert error.value.headers["retry-after"] == "31"
    now += 30
    rates.take(caller)
    rates.use(caller, 120)  # below zero
    now += 60
    with pytest.raises(ApiError, match="tokens"):
        rates.take(caller)
    now += 60
    rates.take(caller)
    headers = dict(rates.headers(caller))
    assert headers[b"x-ratelimit-remaining-tokens"] == b"60"
    assert headers[b"x-ratelimit-remaining-requests"] == b"1"
    assert rates.headers(Caller("free")) == []


def test_web_pages_are_kept_out_unless_named(oracle: LanguageModel, guarded: Running) -> None:
    assert oracle.tokenizer is not None
    preflight = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    path = "/v1/chat/completions"
    answer = httpx.options(guarded.url + path, headers=preflight)
    assert "access-control-allow-origin" not in answer.headers
    texts = texts_of(MODEL, oracle.tokenizer)
    source = ScriptedSource(MODEL, [5])
    with serving(source, texts, origins=["https://page.example"]) as running:
        answer = httpx.options(running.url + path, headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        other = httpx.options(running.url + path, headers={**preflight, "origin": "https://x.y"})
        assert "access-control-allow-origin" not in other.headers
        wrong = httpx.post(running.url + path, headers={"origin": "https://page.example"})
        assert wrong.status_code == 415
        assert wrong.headers["access-control-allow-origin"] == "https://page.example"
