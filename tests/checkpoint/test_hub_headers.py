"""Headers of a hub's weights without the weights, against a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import constants

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.resolve import resolve_model
from firstlight.checkpoint.stand_in import NOTE, stand_in_at
from firstlight.errors import CheckpointError, HubError
from firstlight.loading import load
from tests.support.hub_server import HubServer, Repository, isolated_hub
from tests.support.model_files import safetensors_by_hand
from tests.support.tiny_chat import write_chat_model

ID = "maker/model"
COMMIT = "a" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with isolated_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def headers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`resolve_model` for headers, and hardly any waiting for connections that fail."""
    import firstlight.checkpoint.hub as module

    fetch = module.fetch
    monkeypatch.setattr(module, "fetch", lambda *a, **k: fetch(*a, retry_seconds=0.001, **k))

    def call(model: str = ID, **arguments: object) -> Path:
        settings = {"endpoint": hub.endpoint, "headers_only": True}
        return resolve_model(model, **{**settings, **arguments})  # type: ignore[arg-type]

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes in three shards."""
    folder = tmp_path_factory.mktemp("model")
    return write_chat_model(folder, hidden_size=192, layers=3, shards=3)


def repository(folder: Path) -> Repository:
    """What a model's maker would upload: its folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Repository(files, large={name for name in files if name.endswith(".safetensors")})


def gguf_model(path: Path, tokens: int = 60_000) -> Path:
    """A GGUF file whose header has over a megabyte, written by the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token number {number}" for number in range(tokens)])
    writer.add_token_merges([f"a{number} b{number}" for number in range(tokens)])
    writer.add_tensor("big.weight", np.ones((1024, 4096), np.float16))
    writer.add_tensor("small.weight", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def described(path: Path) -> dict[str, tuple[object, ...]]:
    """All that headers say of the tensors, without where the files lie."""
    return {
        name: (info.format, info.shape, info.nbytes, info.file.name, info.offset)
        for name, info in open_checkpoint(path).tensors.items()
    }


def weights_bytes_sent(hub: HubServer) -> int:
    return sum(
        count for name, count in hub.bytes_sent.items() if name.endswith((".safetensors", ".gguf"))
    )


def leftovers(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.name.endswith((".incomplete", ".tmp"))]


def test_shards_are_described_without_being_downloaded(hub, headers, model, tmp_path):
    hub.repositories[ID] = repository(model)
    path = headers()
    checkpoint = open_checkpoint(path)
    real = open_checkpoint(model)
    assert described(path) == described(model)
    assert checkpoint.config == real.config
    assert checkpoint.licence == real.licence == "apache-2.0"
    sizes = sum(file.stat().st_size for file in real.files)
    assert sizes > 4_000_000
    assert weights_bytes_sent(hub) <= 3 * 65_536
    assert [file.stat().st_size for file in checkpoint.files] == [
        file.stat().st_size for file in real.files
    ]
    assert not leftovers(tmp_path)


def test_stand_in_takes_no_room(hub, headers, model):
    hub.repositories[ID] = repository(model)
    for file in open_checkpoint(headers()).files:
        assert file.stat().st_blocks * 512 < file.stat().st_size / 4


def test_weights_never_reach_the_cache_of_the_hub(hub, headers, model, tmp_path):
    hub.repositories[ID] = repository(model)
    path = headers()
    assert (tmp_path / "own") in path.parents
    held = {file.name for file in (tmp_path / "hub").rglob("*")}
    assert "config.json" in held
    assert not [name for name in held if name.endswith(".safetensors")]
    # The branch is not said to be here: another program would look for its weights.
    assert not list((tmp_path / "hub").rglob("refs"))


def test_long_header_needs_a_second_request(hub, headers, tmp_path):
    tensors = {
        f"a tensor with quite a long name, so that there are many bytes of them {number}": {
            "dtype": "F16",
            "shape": [1000],
            "data_offsets": [2000 * number, 2000 * (number + 1)],
        }
        for number in range(1500)
    }
    content = safetensors_by_hand(tensors, bytes(1500 * 2000))
    header = 8 + int.from_bytes(content[:8], "little")
    assert header > 65_536
    hub.repositories[ID] = Repository(
        {"config.json": b"{}", "model.safetensors": content}, large={"model.safetensors"}
    )
    assert len(open_checkpoint(headers()).tensors) == 1500
    assert hub.bytes_sent["model.safetensors"] == header


def test_gguf_header_of_any_length(hub, headers, tmp_path):
    file = gguf_model(tmp_path / "m-Q4.gguf")
    hub.repositories[ID] = Repository(
        {"m-Q4.gguf": file.read_bytes(), "README.md": b"#"}, large={"m-Q4.gguf"}
    )
    path = headers()
    assert path.name == "m-Q4.gguf"
    assert described(path) == described(file)
    config, real = open_checkpoint(path).config, open_checkpoint(file).config
    assert list(config["tokenizer.ggml.merges"]) == list(real["tokenizer.ggml.merges"])
    header = described(file)["big.weight"][4]
    assert isinstance(header, int)
    assert 1 << 20 < header < 4 << 20
    assert header <= hub.bytes_sent["m-Q4.gguf"] <= 2 * header
    assert path.stat().st_size == file.stat().st_size > 8 << 20


@pytest.mark.parametrize("tokens", [0, 1, 100])
def test_gguf_smaller_than_the_first_request(hub, headers, tmp_path, tokens):
    file = gguf_model(tmp_path / "m.gguf", tokens)
    hub.repositories[ID] = Repository({"m.gguf": file.read_bytes()}, large={"m.gguf"})
    if tokens:
        assert described(headers()) == described(file)
    assert hub.bytes_sent["m.gguf"] <= 1 << 20


def test_gguf_in_a_directory_and_in_parts(hub, headers, tmp_path):
    files = {}
    for number in range(2):
        writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"{number}.weight", np.ones((512, 2048), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        name = f"big/m-{number + 1:05}-of-00002.gguf"
        files[name] = (tmp_path / "part.gguf").read_bytes()
    hub.repositories[ID] = Repository(files, large=set(files))
    path = headers(f"{ID}/big/m-00001-of-00002.gguf")
    assert described(path).keys() == {"0.weight", "1.weight"}
    assert weights_bytes_sent(hub) == 2 << 20
    with pytest.raises(CheckpointError, match="only headers") as caught:
        open_checkpoint(path).weight("0.weight")
    assert f"{ID}/big/m-00001-of-00002.gguf@{COMMIT}" in caught.value.remedy


def test_second_call_needs_no_hub(hub, headers, model, monkeypatch):
    hub.repositories[ID] = repository(model)
    path = headers()
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert headers() == headers(f"{ID}@{COMMIT}") == path
    assert len(hub.requests) == asked


@pytest.mark.parametrize("loss", ["file", "size", "note", "link"])
def test_damaged_stand_in_is_made_again(hub, headers, model, tmp_path, loss):
    hub.repositories[ID] = repository(model)
    path = headers()
    whole = described(path)
    if loss == "file":
        (path / "model-00002-of-00003.safetensors").unlink()
    elif loss == "size":
        os.truncate(path / "model-00002-of-00003.safetensors", 9)
    elif loss == "note":
        (path / NOTE).write_text("{")
    else:
        shutil.rmtree(tmp_path / "hub")
    assert headers() == path
    assert described(path) == whole


def test_update_follows_the_branch(hub, headers, model):
    hub.repositories[ID] = repository(model)
    old = headers()
    hub.repositories[ID].commit = "b" * 40
    assert headers() == old
    new = headers(update=True)
    assert new != old
    assert described(new) == described(old)
    assert headers() == new


def test_stand_in_is_never_taken_for_the_model(hub, headers, model):
    hub.repositories[ID] = repository(model)
    path = headers()
    for use in (resolve_model, load):
        with pytest.raises(CheckpointError, match="only headers") as caught:
            use(str(path))  # type: ignore[operator]
        assert f"{ID}@{COMMIT}" in caught.value.remedy
    with pytest.raises(CheckpointError, match="only headers"):
        open_checkpoint(path).weight("model.norm.weight")
    real = headers(headers_only=False)
    assert real != path
    values = open_checkpoint(real).weight("model.norm.weight").values()
    assert np.array_equal(values, open_checkpoint(model).weight("model.norm.weight").values())
    # And once the weights are here, they are what is inspected.
    assert headers() == real
    assert open_checkpoint(real).stand_in is None


def test_weights_of_another_program_are_used_where_they_lie(hub, headers, model, tmp_path):
    import huggingface_hub

    hub.repositories[ID] = repository(model)
    for name in hub.repositories[ID].files:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    hub.bytes_sent.clear()
    path = headers()
    assert tmp_path / "hub" in path.parents
    assert stand_in_at(path) is None
    assert not hub.bytes_sent


def test_note_has_the_digests_of_the_hub(hub, headers, model):
    hub.repositories[ID] = repository(model)
    stand_in = open_checkpoint(headers()).stand_in
    assert stand_in is not None
    files = hub.repositories[ID].large
    assert stand_in.digests == {name: hub.repositories[ID].digest(name) for name in files}
    assert stand_in.endpoint == hub.endpoint


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"12345",
        b"\xff" * 8,
        bytes(9),
        struct.pack("<Q", 40) + b"{not json" + bytes(31),
        b"GGUF",
        struct.pack("<4sIQQ", b"GGUF", 4, 1, 1) + bytes(100),
        struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1 << 60) + bytes(100),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 50) + bytes(100),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 3) + b"key" + struct.pack("<I", 99) + bytes(9),
    ],
)
def test_corrupt_header(hub, headers, tmp_path, header, suffix):
    name = f"model.{suffix}"
    content = header + bytes(3 << 20) if len(header) > 8 else header
    hub.repositories[ID] = Repository({"config.json": b"{}", name: content}, large={name})
    with pytest.raises(HubError) as caught:
        headers()
    assert caught.value.subject == f"{ID}/{name}"
    assert "owner" in caught.value.remedy
    assert hub.bytes_sent[name] <= 1 << 20, "a fault at the start needs no more than the start"
    assert not list((tmp_path / "own").rglob("*.safetensors"))
    assert not list((tmp_path / "own").rglob("*.gguf"))
    assert not leftovers(tmp_path)


def test_gguf_header_without_an_end(hub, headers, monkeypatch, tmp_path):
    monkeypatch.setattr("firstlight.checkpoint.header_range._MOST_GGUF_BYTES", 2 << 20)
    start = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 3) + b"key"
    start += struct.pack("<IIQ", 9, 0, 5 << 20)  # an array of so many bytes
    hub.repositories[ID] = Repository({"m.gguf": start + bytes(8 << 20)}, large={"m.gguf"})
    with pytest.raises(HubError, match="goes on after 2 MiB"):
        headers()
    assert hub.bytes_sent["m.gguf"] == 2 << 20


def test_header_that_lies_about_the_size_of_the_file(hub, headers, model):
    hub.repositories[ID] = repository(model)
    name = "model-00002-of-00003.safetensors"
    whole = hub.repositories[ID].files[name]
    hub.repositories[ID].files[name] = whole[:-1000]
    with pytest.raises(HubError, match="cut short") as caught:
        headers()
    assert caught.value.subject == f"{ID}/{name}"


def test_file_that_the_hub_lists_but_lacks(hub, headers, model, tmp_path):
    hub.repositories[ID] = repository(model)
    listing = {"sha": COMMIT, "siblings": hub.repositories[ID].siblings()}
    hub.listing = json.dumps(listing).encode()
    del hub.repositories[ID].files["model-00003-of-00003.safetensors"]
    with pytest.raises(HubError, match="lists this file") as caught:
        headers()
    assert caught.value.subject == f"{ID}/model-00003-of-00003.safetensors"
    assert not leftovers(tmp_path)


def test_shard_that_the_repository_lacks(hub, headers, model):
    hub.repositories[ID] = repository(model)
    del hub.repositories[ID].files["model-00003-of-00003.safetensors"]
    with pytest.raises(HubError, match=r"model-00003-of-00003\.safetensors"):
        headers()


def test_broken_connection(hub, headers, model):
    hub.repositories[ID] = repository(model)
    hub.break_after["model-00001-of-00003.safetensors"] = [1000, 0, 5000]
    assert described(headers()) == described(model)
    assert hub.bytes_sent["model-00001-of-00003.safetensors"] == 65_536
    ranges = [r.headers["range"] for r in hub.transfers("model-00001-of-00003.safetensors")]
    assert ranges == [f"bytes={start}-65535" for start in (0, 1000, 1000, 6000)]


def test_connection_that_stays_broken(hub, headers, model, tmp_path):
    hub.repositories[ID] = repository(model)
    hub.break_after["model-00001-of-00003.safetensors"] = [0] * 10
    with pytest.raises(HubError) as caught:
        headers()
    assert caught.value.subject == f"{ID}/model-00001-of-00003.safetensors"
    assert not leftovers(tmp_path)


def test_server_that_ignores_ranges(hub, headers, tmp_path):
    file = gguf_model(tmp_path / "m.gguf")
    hub.repositories[ID] = Repository({"m.gguf": file.read_bytes()}, large={"m.gguf"})
    hub.ignore_ranges = True
    assert described(headers()) == described(file)


def test_offline_without_the_weights(hub, headers, model, monkeypatch):
    hub.repositories[ID] = repository(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        headers()


def test_offline_after_an_inspection_the_weights_are_missed(hub, headers, model, monkeypatch):
    hub.repositories[ID] = repository(model)
    headers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (ID, f"{ID}@{COMMIT}"):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
            headers(name, headers_only=False)


def test_cache_that_cannot_be_written(hub, headers, model, monkeypatch, tmp_path):
    hub.repositories[ID] = repository(model)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "a file"))
    with pytest.raises(HubError, match="cannot be written") as caught:
        headers()
    assert "FIRSTLIGHT_CACHE" in caught.value.remedy


def test_progress_counts_the_files(hub, headers, model):
    hub.repositories[ID] = repository(model)
    seen: dict[str, tuple[int | None, int, str]] = {}

    @contextmanager
    def recorder(description: str, total: int | None = None, *, unit: str = "bytes"):
        amounts: list[int] = []
        yield amounts.append
        seen[description] = total, sum(amounts), unit

    headers(progress=recorder)
    assert seen[f"Reading headers of {ID}"] == (3, 3, "files")
