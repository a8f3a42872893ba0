"""Transfers from a hub: broken off, damaged, at once, and without room."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstlight.checkpoint.hub_client import HubUnreachableError
from firstlight.errors import HubError
from tests.support.hub_repositories import (
    ID,
    WANTED,
    WEIGHTS,
    held,
    leftovers,
)


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
