"""What a user can call a model, and what firstlight says to everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firstlight.checkpoint import demo, hub, resolve
from firstlight.checkpoint.hub import HubReference
from firstlight.errors import FirstlightError, HubError, RequestError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[HubReference, object, object]]:
    """What was asked of the hub; it is not asked itself."""
    asked: list[tuple[HubReference, object, object]] = []

    def fetch(reference, *, endpoint, update, headers_only, progress):  # type: ignore[no-untyped-def]
        assert not headers_only
        asked.append((reference, endpoint, update))
        return Path("/snapshot")

    monkeypatch.setattr(hub, "fetch", fetch)
    return asked


def model_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize("name", ["llama", "./llama", "deep/er/llama", "~/llama"])
def test_directory(here, name):
    directory = model_directory(Path(name).expanduser())
    assert resolve.resolve_model(name).samefile(directory)


def test_gguf_file(here):
    (here / "model.GGUF").write_bytes(b"GGUF")
    assert resolve.resolve_model("model.GGUF") == Path("model.GGUF")


def test_directory_comes_before_the_hub(here, fetched):
    model_directory(here / "org" / "name")
    assert resolve.resolve_model("org/name") == Path("org/name")
    assert not fetched


def test_hub(fetched):
    assert resolve.resolve_model("org/name@v1", endpoint="http://h", update=True) == Path(
        "/snapshot"
    )
    assert fetched == [(HubReference("org/name", "v1"), "http://h", True)]


def test_demo_is_a_word_and_not_a_directory(here, monkeypatch):
    monkeypatch.setattr(demo, "demo_model", lambda progress: Path("/demo.gguf"))
    model_directory(here / "demo")
    assert resolve.resolve_model("demo") == Path("/demo.gguf")
    assert resolve.resolve_model("./demo") == Path("demo")


def test_error_of_the_hub_mentions_a_similar_path(here, monkeypatch):
    def fetch(*arguments, **named):  # type: ignore[no-untyped-def]
        raise HubError("models/lama", "nothing there", "Look again")

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(HubError) as caught:
        resolve.resolve_model("models/lama")
    assert caught.value.reason == "nothing there"
    model_directory(here / "models" / "llama")
    with pytest.raises(HubError) as caught:
        resolve.resolve_model("models/lama")
    assert str(here / "models" / "llama") in caught.value.reason


def refusal(model: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        resolve.resolve_model(model)
    return caught.value


@pytest.mark.parametrize("model", ["./lama", "/nowhere/lama", "~/lama", "a/b/c", "x/y.gguf"])
def test_path_that_does_not_exist(here, fetched, model):
    error = refusal(model)
    assert "taken for a path" in error.reason
    assert not fetched


def test_nearest_path(here):
    model_directory(here / "models" / "llama")
    assert f"nearest: {here / 'models' / 'llama'}" in refusal("./models/lama").reason
    assert f"nearest: {here / 'models'}" in refusal("./model/llama").reason
    assert f"only {here / 'models'} exists" in refusal("./models/xyz/abc").reason
    assert f"nearest: {here / 'models'}" in refusal("modles").reason


def test_word_that_is_nothing(here):
    error = refusal("gpt2")
    assert "ORG/NAME" in error.reason
    assert "demo" in error.remedy


@pytest.mark.parametrize("model", ["", "  ", "a\0b"])
def test_no_name(model):
    assert "is not the name" in refusal(model).reason


def test_address(here):
    error = refusal("https://hub.example/org/name/tree/main")
    assert error.remedy == "Give only the id: org/name"


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("model.safetensors", "Give its directory: m"),
        ("config.json", "Give its directory: m"),
        ("pytorch_model.bin", "safetensors or GGUF"),
        ("notes.txt", "Give a .gguf file"),
    ],
)
def test_file_that_is_no_model(here, file, remedy):
    (here / "m").mkdir()
    (here / "m" / file).write_text("{}")
    assert remedy in refusal(f"m/{file}").remedy


def test_directory_that_is_no_model(here):
    (here / "m").mkdir()
    assert "config.json" in refusal("m").reason
    cache = here / "hub"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    assert str(Path("hub/snapshots/abc")) in refusal("hub").remedy
    model_directory(here / "m" / "llama")
    assert str(Path("m/llama")) in refusal("m").remedy
    (here / "m" / "x.gguf").write_bytes(b"GGUF")
    assert str(Path("m/x.gguf")) in refusal("m").remedy


@settings(max_examples=150, deadline=None)
@example("~0")
@example("~nobody-of-that-name/model")
@example("x" * 5000)
@given(st.text(max_size=300))
def test_any_text_gives_one_of_our_errors(text):
    try:
        reference = hub.parse_reference(text)
        if reference is None:
            resolve.resolve_model(text)
    except FirstlightError as error:
        assert error.reason
        assert error.remedy
