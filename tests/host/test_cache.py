"""The cache directory, and files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from firstlight.errors import FirstlightError
from firstlight.host.cache import cache_directory, write_atomically


def test_directory_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.setenv("FIRSTLIGHT_CACHE", "~/somewhere")
    assert cache_directory() == Path.home() / "somewhere"


def test_home_of_nobody(monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(FirstlightError, match="FIRSTLIGHT_CACHE"):
        cache_directory()


@pytest.mark.parametrize("value", [None, ""])
def test_usual_directory(monkeypatch, value):
    monkeypatch.delenv("FIRSTLIGHT_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("FIRSTLIGHT_CACHE", value)
    assert "firstlight" in cache_directory().parts


def test_creates_and_replaces(tmp_path):
    path = tmp_path / "a" / "b"
    write_atomically(path, lambda file: file.write(b"one"))
    write_atomically(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "ours", lambda file: None)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"old"])
def test_failure_leaves_everything_as_it_was(tmp_path, error, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def writer(file):  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, writer)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


def test_disk_full(tmp_path):
    def writer(file):  # type: ignore[no-untyped-def]
        raise OSError(28, "No space left on device")

    with pytest.raises(FirstlightError, match="No space left"):
        write_atomically(tmp_path / "file", writer)
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FirstlightError) as caught:
        write_atomically(tmp_path / "file" / "below", lambda file: None)
    assert "FIRSTLIGHT_CACHE" in caught.value.remedy


def test_name_that_is_a_directory(tmp_path):
    (tmp_path / "name" / "child").mkdir(parents=True)
    with pytest.raises(FirstlightError):
        write_atomically(tmp_path / "name", lambda file: file.write(b"x"))
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"

    def write(number: int) -> None:
        for _ in range(20):
            write_atomically(path, lambda file: file.write(bytes([number]) * 10_000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert content == content[:1] * 10_000
    assert list(tmp_path.iterdir()) == [path]
