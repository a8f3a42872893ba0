"""`firstlight cache`: what is there, is it whole, and away with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from firstlight import packing
from firstlight.packed.file import PackedFile
from firstlight.packed.store import PackedStore
from tests.support.command import Commands
from tests.support.packed_files import get, key, small_store
from tests.support.tiny_chat import write_chat_model


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIRSTLIGHT_CACHE_LIMIT", raising=False)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def store(directory: Path) -> PackedStore:
    """Three models, the second used last."""
    made = small_store(directory)
    for number, when in ((1, 1_000_000), (2, 3_000_000), (3, 2_000_000)):
        get(made, number)
        os.utime(directory / key(number).file_name(), (when, when))
    return made


def listed(commands: Commands) -> list[str]:
    return [entry["model"] for entry in json.loads(commands("cache", "--json").out)["entries"]]


def test_an_empty_cache(commands: Commands, directory: Path) -> None:
    done = commands("cache")
    assert done.code == 0
    assert done.out.startswith("0.0 MiB of at most ")
    assert str(directory) in done.out
    assert json.loads(commands("cache", "list", "--json").out)["entries"] == []
    assert commands("cache", "clear").code == 0
    assert commands("cache", "verify").code == 0
    assert not directory.exists()


@pytest.mark.usefixtures("store")
def test_the_list(commands: Commands, directory: Path) -> None:
    report = json.loads(commands("cache", "--json").out)
    assert report["directory"] == str(directory)
    assert [entry["model"] for entry in report["entries"]] == ["model 2", "model 3", "model 1"]
    entry = report["entries"][0]
    path = directory / entry["file"]
    assert entry["size"] == path.stat().st_size
    assert (entry["weights"], entry["layout"], entry["in_use"]) == ("q8_0", "layout 1", False)
    assert entry["digest"] == f"{2:064x}"
    assert report["bytes"] == sum(entry["size"] for entry in report["entries"])
    lines = commands("cache").out.splitlines()
    assert lines[0].split() == ["model", "weights", "layout", "size", "last", "used"]
    assert lines[1].startswith("model 2  q8_0")
    assert "1970-02-04" in lines[1]
    assert len(lines) == 5


def test_one_in_use_is_marked_and_kept(commands: Commands, store: PackedStore) -> None:
    held: PackedFile | None = get(store, 3)
    assert held is not None
    assert "(in use)" in commands("cache").out
    done = commands("cache", "clear")
    assert done.code == 0
    assert "2 deleted" in done.out
    assert "model 3 is in use and was kept" in done.out
    assert listed(commands) == ["model 3"]
    del held
    assert json.loads(commands("cache", "clear", "--json").out)["removed"][0]["model"] == "model 3"
    assert listed(commands) == []


@pytest.mark.usefixtures("store")
def test_one_model_is_cleared_by_name(commands: Commands) -> None:
    assert commands("cache", "clear", "model 3").code == 0
    assert listed(commands) == ["model 2", "model 1"]
    done = commands("cache", "clear", "model 3")
    assert done.code == 2
    assert "no packed weights" in done.err


@pytest.mark.usefixtures("store")
def test_verification(commands: Commands, directory: Path) -> None:
    done = commands("cache", "verify")
    assert (done.code, done.out.count("whole")) == (0, 3)
    damaged = directory / key(1).file_name()
    with damaged.open("r+b") as file:
        file.seek(4096)
        first = file.read(1)[0]
        file.seek(4096)
        file.write(bytes([first ^ 1]))
    (directory / "other.packed").write_bytes(b"nothing of ours")
    before = [path.stat().st_mtime for path in sorted(directory.glob("*.packed"))]
    done = commands("cache", "verify", "--json")
    assert done.code == 1
    problems = {entry["model"]: entry["problem"] for entry in json.loads(done.out)["entries"]}
    assert problems["model 1"] == "damaged: tensor 0"
    assert problems["model 2"] is None
    assert "cut short" in problems[""]
    done = commands("cache", "verify")
    assert "model 1: damaged: tensor 0" in done.out
    assert "firstlight cache clear" in done.out
    after = [path.stat().st_mtime for path in sorted(directory.glob("*.packed"))]
    assert after == before  # looking is not using
    assert commands("cache", "clear", "other.packed").code == 0
    assert not (directory / "other.packed").exists()


@pytest.mark.usefixtures("store")
def test_the_limit(commands: Commands, directory: Path) -> None:
    default = json.loads(commands("cache", "limit", "--json").out)["limit"]
    assert 0 < default <= 50 << 30
    assert commands("cache", "limit", "2GiB").out == "2.00 GiB\n"
    assert len(listed(commands)) == 3
    size = (directory / key(1).file_name()).stat().st_size
    commands("cache", "limit", str(2 * size))
    assert listed(commands) == ["model 2", "model 3"]
    commands("cache", "limit", "default")
    assert json.loads(commands("cache", "limit", "--json").out)["limit"] == default
    done = commands("cache", "limit", "plenty")
    assert done.code == 2
    assert "20GiB" in done.err


@pytest.mark.parametrize("name", ["run", "chat"])
def test_a_run_fills_it_unless_told_not_to(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(packing, "WORTH_KEEPING_CONVERTED", 0)
    monkeypatch.setattr(packing, "SPARE_BYTES", 0)
    folder = write_chat_model(tmp_path / "model")
    words = [name, folder, *(["hello"] if name == "run" else []), "-n", "2", "--weights", "int8"]
    assert commands(*words, "--no-cache", stdin="hello\n").code == 0
    assert listed(commands) == []
    assert commands(*words, stdin="hello\n").code == 0
    assert listed(commands) == [str(folder)]
