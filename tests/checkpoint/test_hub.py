"""Models from a hub, against a hub of our own on the loopback interface.

The cache that results is checked with huggingface_hub itself, which reads the same layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from firstlight.checkpoint.hub import HubReference, fetch, parse_reference
from firstlight.checkpoint.hub_client import HubUnreachableError
from firstlight.errors import HubError
from tests.support.hub_server import HubServer, Repository, isolated_hub

ID = "maker/model"


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


WEIGHTS = content(300_000)


def sharded() -> Repository:
    """A repository as they are: the model, and much that firstlight does not need."""
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    wanted = {
        "config.json": b'{"config": 1}',
        "generation_config.json": b'{"generation": 1}',
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"tokenizer": 1}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "README.md": b"# A model",
        "LICENSE.txt": b"Do as you like",
        "model-00001.safetensors": WEIGHTS,
        "model-00002.safetensors": content(100_000, 1),
    }
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "original/consolidated.00.pth": b"again",
        "onnx/model.onnx": b"again",
        "model.Q4.gguf": b"again",
        "training_args.bin": b"pickle",
        "modeling_custom.py": b"raise SystemExit",
        ".gitattributes": b"",
    }
    large = {name for name in wanted if name.endswith(".safetensors")} | {"tokenizer.json"}
    return Repository({**unwanted, **wanted}, large=large)


WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "README.md",
    "LICENSE.txt",
    "model-00001.safetensors",
    "model-00002.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with isolated_hub(monkeypatch, tmp_path) as server:
        server.repositories[ID] = sharded()
        yield server


@pytest.fixture
def get(hub: HubServer, tmp_path: Path) -> Callable[..., Path]:
    """`fetch` with this test's hub and cache, and hardly any waiting."""

    def call(model: str = ID, **arguments: object) -> Path:
        reference = parse_reference(model)
        assert reference is not None
        settings = {"endpoint": hub.endpoint, "cache": tmp_path / "hub", "retry_seconds": 0.001}
        return fetch(reference, **{**settings, **arguments})  # type: ignore[arg-type]

    return call


def held(snapshot: Path) -> dict[str, bytes]:
    return {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }


def leftovers(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.name.endswith((".incomplete", ".tmp"))]


def test_downloads_what_is_needed_and_no_more(hub, get, tmp_path):
    snapshot = get()
    repository = hub.repositories[ID]
    assert held(snapshot) == {name: repository.files[name] for name in WANTED}
    assert not leftovers(tmp_path)
    assert {request.path.rpartition("/")[2] for request in hub.requests[1:]} == WANTED


def test_huggingface_hub_finds_everything_in_the_cache(hub, get, tmp_path):
    snapshot = get()
    for name in WANTED:
        found = huggingface_hub.hf_hub_download(
            ID, name, cache_dir=tmp_path / "hub", local_files_only=True
        )
        assert Path(found) == snapshot / name
        assert Path(found).read_bytes() == hub.repositories[ID].files[name]
    scanned = huggingface_hub.scan_cache_dir(tmp_path / "hub")
    assert not scanned.warnings
    (repository,) = scanned.repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, revision.refs) == (ID, "a" * 40, {"main"})
    assert {file.file_name for file in revision.files} == WANTED


def test_second_call_needs_no_hub(hub, get):
    first = get()
    asked = len(hub.requests)
    assert get() == first
    assert get(f"{ID}@{'a' * 40}") == first
    assert len(hub.requests) == asked
    assert get(endpoint="http://127.0.0.1:9") == first


def test_verified_once(hub, get, monkeypatch):
    get()

    def never(*arguments: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("firstlight.checkpoint.hub_snapshot.matches_digest", never)
    get()
    get(update=True)


def test_changed_file_is_found_out_and_fetched_again(hub, get):
    snapshot = get()
    place = (snapshot / "model-00001.safetensors").resolve()
    damaged = bytearray(WEIGHTS)
    damaged[1000] ^= 1
    place.write_bytes(damaged)
    os.utime(place, ns=(1, 1))
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    assert len(hub.transfers("model-00001.safetensors")) == 2
    assert len(hub.transfers("model-00002.safetensors")) == 1


def test_update_follows_the_branch(hub, get):
    old = get()
    hub.repositories[ID].commit = "b" * 40
    hub.repositories[ID].files["config.json"] = b'{"new": true}'
    assert get() == old
    new = get(update=True)
    assert new.name == "b" * 40
    assert (new / "config.json").read_bytes() == b'{"new": true}'
    assert len(hub.transfers("model-00001.safetensors")) == 1, "content that has not changed"
    assert get() == new


def test_broken_transfer_goes_on_within_a_call(hub, get):
    hub.break_after["model-00001.safetensors"] = [120_000, 0, 100_000]
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    transfers = hub.transfers("model-00001.safetensors")
    assert "range" not in transfers[0].headers
    assert [request.headers["range"] for request in transfers[1:]] == [
        "bytes=120000-",
        "bytes=120000-",
        "bytes=220000-",
    ]
    assert hub.bytes_sent["model-00001.safetensors"] == len(WEIGHTS)


def test_broken_transfer_goes_on_in_the_next_call(hub, get, tmp_path):
    hub.break_after["model-00001.safetensors"] = [120_000] + [0] * 10
    with pytest.raises(HubUnreachableError) as caught:
        get()
    assert "model-00001.safetensors" in caught.value.subject
    assert "--endpoint" in caught.value.remedy
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    (partial,) = (path for path in leftovers(tmp_path) if path.name.startswith(digest))
    assert partial.read_bytes() == WEIGHTS[:120_000]
    assert all(path.stat().st_size for path in leftovers(tmp_path))
    assert not (tmp_path / "hub/models--maker--model/refs").exists()
    hub.break_after.clear()
    hub.requests.clear()
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    (transfer,) = hub.transfers("model-00001.safetensors")
    assert transfer.headers["range"] == "bytes=120000-"
    assert hub.bytes_sent["model-00001.safetensors"] == len(WEIGHTS)
    assert not leftovers(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_download_goes_on_in_the_next_process(hub, get, tmp_path):
    hub.stall["model-00001.safetensors"] = threading.Event()
    script = (
        "import sys; from pathlib import Path\n"
        "from firstlight.checkpoint.hub import fetch, parse_reference\n"
        f"fetch(parse_reference({ID!r}), endpoint=sys.argv[1], cache=Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, hub.endpoint, str(tmp_path / "hub")],
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    assert hub.stalled.wait(30)
    blobs = tmp_path / "hub/models--maker--model/blobs"
    name = f"{hashlib.sha256(WEIGHTS).hexdigest()}.firstlight.incomplete"
    deadline = threading.Event()
    for _ in range(300):  # what the server has sent is on disk once the client has read it
        if (blobs / name).exists() and (blobs / name).stat().st_size >= 64_000:
            break
        deadline.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stall.pop("model-00001.safetensors").set()
    kept = (blobs / name).stat().st_size
    assert 64_000 <= kept <= 150_000
    hub.requests.clear()
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    (transfer,) = hub.transfers("model-00001.safetensors")
    assert transfer.headers["range"] == f"bytes={kept}-"


def test_server_that_ignores_ranges(hub, get):
    hub.break_after["model-00001.safetensors"] = [120_000]
    hub.ignore_ranges = True
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("size", [120_000, 300_000, 400_000])
def test_wrong_beginning_on_disk_is_replaced(hub, get, tmp_path, size):
    blobs = tmp_path / "hub/models--maker--model/blobs"
    blobs.mkdir(parents=True)
    name = f"{hashlib.sha256(WEIGHTS).hexdigest()}.firstlight.incomplete"
    (blobs / name).write_bytes(bytes(size))
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["model-00001.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["changed", "longer"])
def test_content_that_does_not_match_its_checksum_is_removed(hub, get, tmp_path, name, fault):
    right = hub.repositories[ID].files[name]
    wrong = bytes([right[0] ^ 1]) + right[1:] if fault == "changed" else right + b"more"
    hub.instead[name] = wrong
    with pytest.raises(HubError) as caught:
        get()
    assert caught.value.subject == f"{ID}/{name}"
    assert "checksum" in caught.value.reason
    digest = hub.repositories[ID].digest(name)
    assert not list((tmp_path / "hub").rglob(f"{digest}*[!k]")), "only the lock file may be left"
    hub.instead.clear()
    assert (get() / name).read_bytes() == right


def test_content_that_is_shorter_than_announced(hub, get):
    hub.instead["config.json"] = b""
    with pytest.raises(HubError, match="13 bytes early"):
        get()


def test_files_of_another_program_are_verified_and_used_offline(hub, get, tmp_path, monkeypatch):
    for name in WANTED:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    snapshot = get()
    assert held(snapshot).keys() == WANTED
    assert len(hub.requests) == asked


@pytest.mark.parametrize("how", ["offline", "unreachable", "fault"])
def test_damaged_file_without_a_hub(hub, get, tmp_path, monkeypatch, how):
    for name in WANTED:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    snapshot = tmp_path / "hub/models--maker--model/snapshots" / ("a" * 40)
    place = (snapshot / "model-00002.safetensors").resolve()
    place.write_bytes(bytes(100_000))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    hub.answer_all = 503
    endpoint = "http://127.0.0.1:9" if how == "unreachable" else hub.endpoint
    with pytest.raises(HubError, match=r"model-00002.safetensors"):
        get(endpoint=endpoint)
    assert not place.exists(), "content known to be wrong stays for nobody"


def test_snapshot_without_a_shard_offline(hub, get, tmp_path, monkeypatch):
    for name in WANTED - {"model-00002.safetensors"}:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"model-00002.safetensors"):
        get()


def test_known_revision_without_its_files_offline(get, tmp_path, monkeypatch):
    shutil.rmtree(get())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the local cache"):
        get()


def test_usual_cache_is_that_of_the_hub(get, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    assert tmp_path / "usual" in get(cache=None).parents


def test_offline_without_anything(get, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        get()


def test_two_at_once_download_once(hub, get):
    hub.stall["model-00001.safetensors"] = threading.Event()
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(get())) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert hub.stalled.wait(30)
    hub.stall["model-00001.safetensors"].set()
    for thread in threads:
        thread.join(30)
    assert len(results) == 2
    assert results[0] == results[1]
    assert hub.bytes_sent["model-00001.safetensors"] == len(WEIGHTS)


def test_one_content_under_two_names(hub, get):
    hub.repositories[ID].files["model-00002.safetensors"] = WEIGHTS
    snapshot = get()
    assert (snapshot / "model-00002.safetensors").read_bytes() == WEIGHTS
    total = sum(hub.bytes_sent[f"model-0000{shard}.safetensors"] for shard in (1, 2))
    assert total == len(WEIGHTS)


def test_without_symbolic_links(hub, get, monkeypatch):
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert held(get()).keys() == WANTED
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    hub.repositories[ID].commit = "b" * 40
    assert held(get(update=True)).keys() == WANTED


def test_disk_too_small_is_foreseen(hub, get, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 200_000))
    with pytest.raises(HubError, match="free") as caught:
        get()
    assert "HF_HUB_CACHE" in caught.value.remedy
    assert not hub.transfers("model-00001.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_cache_that_cannot_be_written(get, tmp_path):
    (tmp_path / "hub").mkdir(mode=0o500)
    with pytest.raises(HubError, match="cannot be written"):
        get()


def test_disk_full_in_the_middle(get, monkeypatch, tmp_path):
    import firstlight.checkpoint.hub_transfer as hub_transfer

    def full(self: object, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_transfer._Transfer, "_count", full)
    with pytest.raises(HubError, match="No space left") as caught:
        get()
    assert "HF_HUB_CACHE" in caught.value.remedy


@pytest.mark.parametrize("model", ["maker/other", "nobody/model"])
def test_missing_repository(get, model):
    with pytest.raises(HubError, match="no such repository") as caught:
        get(model)
    assert model in caught.value.subject
    assert "HF_TOKEN" in caught.value.remedy


def test_missing_revision(get):
    with pytest.raises(HubError, match="no revision 'v9'") as caught:
        get(f"{ID}@v9")
    assert "tree/main" in caught.value.remedy


def test_revision_by_branch_tag_and_commit(hub, get):
    hub.repositories[ID].revisions |= {"v1.0", "refs/pr/3"}
    assert get(f"{ID}@v1.0") == get(f"{ID}@refs/pr/3") == get(f"{ID}@{'a' * 40}")
    asked = len(hub.requests)
    get(f"{ID}@v1.0")
    assert len(hub.requests) == asked


def test_hub_that_answers_with_another_commit(get, hub):
    hub.repositories[ID].revisions.add("c" * 40)
    with pytest.raises(HubError, match="another commit"):
        get(f"{ID}@{'c' * 40}")


def test_gated_repository(hub, get, monkeypatch):
    hub.repositories[ID].gated = True
    with pytest.raises(HubError, match="admitted") as caught:
        get()
    assert f"{hub.endpoint}/{ID}" in caught.value.remedy
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    assert held(get()).keys() == WANTED


def test_private_repository_and_where_the_token_goes(hub, get, monkeypatch):
    hub.repositories[ID].private = True
    with pytest.raises(HubError, match="only to its members"):
        get()
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    hub.requests.clear()
    # The stored contents are on "another host", which has no business with the token.
    with pytest.raises(HubError):
        get()
    for request in hub.requests:
        assert ("authorization" in request.headers) == (not request.path.startswith("/stored/"))


def test_token_that_cannot_be_read(get, monkeypatch, tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfe\xfa")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(HubError, match="token") as caught:
        get()
    assert "HF_TOKEN" in caught.value.remedy


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_other_refusals(hub, get, status):
    hub.answer_all = status
    with pytest.raises(HubError) as caught:
        get()
    assert caught.value.remedy
    assert isinstance(caught.value, HubUnreachableError) == (status >= 500)


def test_file_that_the_hub_lists_but_lacks(hub, get):
    listing = {"sha": "a" * 40, "siblings": hub.repositories[ID].siblings()}
    hub.listing = json.dumps(listing).encode()
    del hub.repositories[ID].files["model-00001.safetensors"]
    with pytest.raises(HubError, match="lists this file"):
        get()


def test_no_network(get):
    with pytest.raises(HubUnreachableError) as caught:
        get(endpoint="http://127.0.0.1:9")
    assert "127.0.0.1:9" in caught.value.reason
    assert "--endpoint" in caught.value.remedy
    assert "directory" in caught.value.remedy


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "http://["])
def test_endpoint_that_is_none(get, endpoint):
    with pytest.raises(HubError):
        get(endpoint=endpoint)


def test_endpoint_from_the_environment(hub, get, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    assert held(get(endpoint=None)).keys() == WANTED


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>Sign in</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "../../../../etc/aaaaaaaaaaaaaaaaaaaaaaaa", "siblings": []}',
        b'{"sha": "%b", "siblings": {"a": 1}}' % (b"a" * 40),
        b'{"sha": "%b", "siblings": [1]}' % (b"a" * 40),
        b'{"sha": "%b", "siblings": [{"rfilename": "a", "lfs": 3}]}' % (b"a" * 40),
        b"[" * 100_000,
    ],
)
def test_listing_that_is_none(hub, get, listing):
    hub.listing = listing
    with pytest.raises(HubError) as caught:
        get()
    assert "as a hub should" in caught.value.reason


@pytest.mark.parametrize(
    "change",
    [
        {"size": None, "lfs": None},
        {"blobId": "../../config", "lfs": None},
        {"blobId": None, "lfs": None},
        {"lfs": {"sha256": "x" * 64, "size": 1}},
        {"lfs": {"sha256": "0" * 64, "size": -1}},
        {"lfs": {"sha256": "0" * 64, "size": 10**400}},
        {"lfs": {"sha256": "0" * 64, "size": True}},
    ],
)
def test_file_without_checksum_or_size(hub, get, change):
    siblings = hub.repositories[ID].siblings()
    for sibling in siblings:
        if sibling["rfilename"] == "model-00001.safetensors":
            sibling.update(change)
    hub.listing = json.dumps({"sha": "a" * 40, "siblings": siblings}).encode()
    with pytest.raises(HubError, match="no checksum"):
        get()


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "a\\..\\evil.gguf", ".."])
def test_names_that_leave_the_directory(hub, get, tmp_path, name):
    evil = {"rfilename": name, "size": 4, "blobId": "0" * 40}
    hub.listing = json.dumps({"sha": "a" * 40, "siblings": [evil]}).encode()
    with pytest.raises(HubError, match="no weights"):
        get()
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    "index",
    [
        b"not json",
        b"[]",
        b'{"weight_map": ["model-00001.safetensors"]}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "model-00009.safetensors"}}',
        b'{"weight_map": {"a": "pytorch_model.bin"}}',
        b'{"weight_map": {"a": "../../x.safetensors"}}',
        b"[" * 100_000,
    ],
)
def test_index_that_is_none(hub, get, index):
    hub.repositories[ID].files["model.safetensors.index.json"] = index
    with pytest.raises(HubError, match=r"model.safetensors.index.json"):
        get()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["weights-1.safetensors", "weights-2.safetensors"], None),
    ],
)
def test_safetensors_without_index(hub, get, names, chosen):
    files = {name: content(10, seed) for seed, name in enumerate(names)}
    hub.repositories[ID] = Repository({**files, "config.json": b"{}"})
    assert held(get()).keys() == {*(chosen or names), "config.json"}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin", "config.json"], "pickle"),
        (["adapter_model.safetensors"], "adapter"),
        (["consolidated.safetensors", "params.json"], "consolidated"),
        (["README.md"], "no weights"),
        ([], "empty"),
        (["a.gguf", "b.gguf"], "a.gguf, b.gguf"),
    ],
)
def test_no_weights_to_choose(hub, get, names, reason):
    hub.repositories[ID] = Repository(dict.fromkeys(names, b"x"))
    with pytest.raises(HubError, match=reason):
        get()


def gguf_repository() -> Repository:
    names = ["m-Q4.gguf", "m-Q8.gguf", "mmproj-m.gguf", "big/m-00001-of-00002.gguf"]
    names.append("big/m-00002-of-00002.gguf")
    files = {name: content(1000, seed) for seed, name in enumerate(names)}
    return Repository({**files, "README.md": b"#", "config.json": b"{}"}, large=set(names))


def test_gguf_by_name(hub, get):
    hub.repositories[ID] = gguf_repository()
    path = get(f"{ID}/m-Q8.gguf")
    assert path.name == "m-Q8.gguf"
    assert held(path.parent).keys() == {"m-Q8.gguf", "README.md"}
    assert get(f"{ID}/m-Q4.gguf").read_bytes() == hub.repositories[ID].files["m-Q4.gguf"]
    asked = len(hub.requests)
    assert get(f"{ID}/m-Q8.gguf") == path
    assert len(hub.requests) == asked


def test_gguf_in_parts(hub, get):
    hub.repositories[ID] = gguf_repository()
    path = get(f"{ID}/big/m-00001-of-00002.gguf")
    assert path.name == "m-00001-of-00002.gguf"
    assert (path.parent / "m-00002-of-00002.gguf").is_file()
    del hub.repositories[ID].files["big/m-00002-of-00002.gguf"]
    hub.repositories[ID].commit = "b" * 40
    with pytest.raises(HubError, match="lacks 1 of its 2 parts"):
        get(f"{ID}/big/m-00001-of-00002.gguf", update=True)


def test_gguf_that_is_the_only_one(hub, get):
    hub.repositories[ID] = Repository({"m.gguf": b"GGUF", "mmproj-m.gguf": b"x"})
    assert get().read_bytes() == b"GGUF"


def test_gguf_that_is_not_there(hub, get):
    hub.repositories[ID] = gguf_repository()
    with pytest.raises(HubError, match="no such file") as caught:
        get(f"{ID}/m-Q5.gguf")
    assert f"{ID}/m-Q" in caught.value.remedy


def test_progress_counts_every_byte_once(hub, get):
    seen: list[tuple[str, int | None, int]] = []

    @contextmanager
    def recorder(description: str, total: int | None = None, *, unit: str = "bytes"):
        done, lock = 0, threading.Lock()

        def advance(amount: int) -> None:
            nonlocal done
            with lock:
                done += amount

        yield advance
        seen.append((description, total, done))

    hub.break_after["model-00001.safetensors"] = [120_000]
    hub.ignore_ranges = True
    get(progress=recorder)
    files = hub.repositories[ID].files
    index = len(files["model.safetensors.index.json"])
    rest = sum(len(files[name]) for name in WANTED) - index
    assert seen == [(f"Downloading {ID}", index, index), (f"Downloading {ID}", rest, rest)]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("org/name", HubReference("org/name")),
        ("org/na.me-1_x@v1", HubReference("org/na.me-1_x", "v1")),
        ("org/name@refs/pr/1", HubReference("org/name", "refs/pr/1")),
        ("org/name/a/b.gguf@main", HubReference("org/name", "main", "a/b.gguf")),
    ],
)
def test_reference(text, reference):
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "org/",
        "/name",
        "org/name/",
        "org/name/file.bin",
        "org/name/../x.gguf",
        "org/..",
        "../name",
        "org/a--b",
        "org/name@",
        "org/name@../x",
        "org/name@a/../b",
        "org/name@/x",
        "org/x.gguf",
        "org/na me",
        "org/name\n",
        "o" * 97 + "/name",
    ],
)
def test_not_a_reference(text):
    assert parse_reference(text) is None
