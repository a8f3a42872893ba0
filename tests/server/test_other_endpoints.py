"""Models, tokens, health, metrics, and the pages that describe the API."""

from __future__ import annotations

import re

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from firstlight.language_model import LanguageModel
from tests.server.conftest import MODEL
from tests.support.http_server import Running, serving, texts_of
from tests.support.token_sources import EngineSource, ScriptedSource


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "firstlight")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("org/other")
    assert error.value.code == "model_not_found"


def test_a_name_with_slashes(oracle: LanguageModel) -> None:
    assert oracle.tokenizer is not None
    texts = texts_of("org/name", oracle.tokenizer)
    with serving(ScriptedSource("org/name", [5]), texts) as running:
        assert httpx.get(f"{running.url}/v1/models/org/name").json()["id"] == "org/name"


def test_tokenize_and_back(http: httpx.Client, oracle: LanguageModel) -> None:
    text = "Ünïcode 好 <|user|>"
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": text}).json()
    assert answer["tokens"] == oracle.encode(text)
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    hidden = {"tokens": answer["tokens"], "skip_special_tokens": True}
    assert http.post("/detokenize", json=hidden).json() == {"prompt": "Ünïcode 好 "}


def test_tokenize_a_conversation(http: httpx.Client, oracle: LanguageModel) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = http.post("/tokenize", json={"messages": messages}).json()
    assert answer["tokens"] == oracle.encode_chat(messages)
    open_ended = {"messages": messages, "add_generation_prompt": False}
    assert len(http.post("/tokenize", json=open_ended).json()["tokens"]) == answer["count"] - 1


def test_tokenize_needs_one_of_two(http: httpx.Client) -> None:
    both = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    for body in ({}, both):
        answer = http.post("/tokenize", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"


def test_health_and_readiness(oracle: LanguageModel) -> None:
    assert oracle.tokenizer is not None
    source = ScriptedSource(MODEL, [5])
    with serving(source, texts_of(MODEL, oracle.tokenizer)) as running:
        source.ready = False
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert httpx.get(f"{running.url}/ready").status_code == 503
        body = {"model": MODEL, "prompt": "x"}
        answer = httpx.post(f"{running.url}/v1/completions", json=body)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{running.url}/v1/models").json()["data"] == []
        source.ready = True
        ready = httpx.get(f"{running.url}/ready")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "replicas": {f"{MODEL}-0": "ready"}}


def samples(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(server: Running, client: openai.OpenAI, source: EngineSource) -> None:
    before = samples(server)
    client.completions.create(
        model=MODEL, prompt="abc", max_tokens=5, extra_body={"ignore_eos": True}
    )
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt="abc", temperature=-1)
    httpx.get(f"{server.url}/some/strange/path")
    after = samples(server)

    def gained(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before.get(key, 0.0)

    assert gained("firstlight_tokens_total", model=MODEL, kind="prompt") == 3
    assert gained("firstlight_tokens_total", model=MODEL, kind="output") == 5
    assert gained("firstlight_time_to_first_token_seconds_count", model=MODEL) == 1
    assert gained("firstlight_time_between_tokens_seconds_count", model=MODEL) == 4
    path = "/v1/completions"
    assert gained("firstlight_requests_total", path=path, status="200") == 1
    assert gained("firstlight_requests_total", path=path, status="400") == 1
    assert gained("firstlight_requests_total", path="other", status="404") == 1
    replica = {"replica": f"{MODEL}-0", "model": MODEL, "device": "cpu"}
    key = frozenset(replica.items())
    for name, value in (
        ("running", 3), ("pages", 9), ("restarts_total", 1), ("failovers_total", 2), ("ready", 1),
    ):  # fmt: skip
        assert after[f"firstlight_replica_{name}", key] == value
    assert all(name.startswith("firstlight_") for name, _ in after)


def test_the_page_of_the_api_loads_nothing(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text and "max_completion_tokens" in page.text
    assert not re.search(r"<script|<link|src=|https?://|@import|url\(", page.text)


def test_the_description_names_every_path(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, methods in described["paths"].items():
        for method in methods:
            answer = http.request(method, path.replace("{id}", MODEL), json={})
            assert answer.status_code != 404, path


def test_what_does_not_exist_yet_is_said(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(model=MODEL, input="x")
    assert error.value.code == "unsupported_endpoint"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")
    wrong_method = http.get("/v1/chat/completions")
    assert wrong_method.status_code == 405
    assert wrong_method.json()["error"]["code"] == "method_not_allowed"
    assert "POST" in wrong_method.headers["allow"]


def test_request_ids(http: httpx.Client) -> None:
    assert len(http.get("/health").headers["x-request-id"]) == 24
    given = http.get("/health", headers={"x-request-id": "my-id_1.2"})
    assert given.headers["x-request-id"] == "my-id_1.2"
    strange = http.get("/health", headers={"x-request-id": "a b\tc" * 30})
    assert strange.headers["x-request-id"] != "a b\tc" * 30
