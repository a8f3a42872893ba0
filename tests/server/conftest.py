"""One server over a real engine for all tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

import firstlight
from firstlight.language_model import LanguageModel
from tests.support.http_server import Running, serving, texts_of
from tests.support.tiny_chat import write_chat_model
from tests.support.token_sources import EngineSource

MODEL = "tiny"


@pytest.fixture(scope="package")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The model behind the server, whose own engine nobody else may step while it serves."""
    return load(tmp_path_factory)


@pytest.fixture(scope="package")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The same model, for the tests to ask what the server should have said."""
    return load(tmp_path_factory)


def load(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = write_chat_model(tmp_path_factory.mktemp("server"), context_length=512)
    return firstlight.load(folder, "numpy", use="chat", cache=False, sequences=4)


@pytest.fixture(scope="package")
def source(language_model: LanguageModel) -> Iterator[EngineSource]:
    source = EngineSource({MODEL: language_model})
    yield source
    source.close()


@pytest.fixture(scope="package")
def server(source: EngineSource, language_model: LanguageModel) -> Iterator[Running]:
    assert language_model.tokenizer is not None
    texts = texts_of(MODEL, language_model.tokenizer, language_model.checkpoint.generation)
    with serving(source, texts) as running:
        yield running


@pytest.fixture(scope="package")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="package")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
