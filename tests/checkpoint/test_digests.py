"""Digests of weight files are computed once, and never remembered wrongly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstlight.checkpoint import digests
from firstlight.checkpoint.digests import weights_digest
from firstlight.errors import CheckpointError
from firstlight.progress import Advance


class Hashed:
    """A progress bar that counts the bytes that were hashed."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def __call__(
        self, description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> Iterator[Advance]:
        def advance(count: int) -> None:
            self.bytes += count

        yield advance


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files that were last changed long ago."""
    paths = [tmp_path / name for name in ("one.gguf", "two.gguf")]
    for path in paths:
        path.write_bytes(path.name.encode() * 300_000)
    return paths


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files count as settled at once: a test cannot set the time of an inode's change."""
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -3600)


def digest(files: list[Path], index: Path) -> tuple[str, int]:
    hashed = Hashed()
    return weights_digest(files, progress=hashed, index=index), hashed.bytes


def test_what_it_is(files: list[Path], tmp_path: Path) -> None:
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    size = sum(path.stat().st_size for path in files)
    assert digest(files, tmp_path / "index") == (expected, size)
    assert digest(files, tmp_path / "index") == (expected, 0)
    assert digest(files[::-1], tmp_path / "index")[0] != expected


def test_a_change_that_keeps_size_and_time_is_noticed(files: list[Path], tmp_path: Path) -> None:
    before, _ = digest(files, tmp_path / "index")
    status = files[1].stat()
    content = files[1].read_bytes()
    files[1].write_bytes(b"T" + content[1:])
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    after, hashed = digest(files, tmp_path / "index")
    assert after != before
    assert hashed == len(content)


def test_a_replaced_file_is_noticed(files: list[Path], tmp_path: Path) -> None:
    before, _ = digest(files, tmp_path / "index")
    other = tmp_path / "other"
    other.write_bytes(b"x" * files[0].stat().st_size)
    other.replace(files[0])
    assert digest(files, tmp_path / "index")[0] != before


def test_a_copy_and_a_link_have_the_same_digest(files: list[Path], tmp_path: Path) -> None:
    before, _ = digest(files, tmp_path / "index")
    link = tmp_path / "link"
    link.symlink_to(files[0])
    assert digest([link, files[1]], tmp_path / "index") == (before, 0)
    copy = tmp_path / "copy"
    copy.write_bytes(files[0].read_bytes())
    assert digest([copy, files[1]], tmp_path / "index")[0] == before


def test_a_blob_of_the_hub_is_not_hashed(tmp_path: Path) -> None:
    name = "c0" * 32
    blob = tmp_path / "models--org--name" / "blobs" / name
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"large")
    place = tmp_path / "models--org--name" / "snapshots" / "commit" / "model.safetensors"
    place.parent.mkdir(parents=True)
    place.symlink_to(os.path.relpath(blob, place.parent))
    expected = hashlib.sha256(f"{name}\n".encode()).hexdigest()
    assert digest([place], tmp_path / "index") == (expected, 0)
    small = blob.with_name("ab" * 20)  # a Git object id is no digest of the content
    small.write_bytes(b"small")
    assert digest([small], tmp_path / "index")[1] == 5


def test_what_changed_just_now_is_hashed_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 3600)
    assert digest(files, tmp_path / "index")[1] > 0
    assert digest(files, tmp_path / "index")[1] > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"layout": 1}',
        b'{"layout": 1, "files": 3}',
        b'{"layout": 1, "files": {"a": [{}, "b"]}}',
        b'{"layout": 1, "files": {"a": [{"x": 1}, 5]}}',
        b'{"layout": 0, "files": {}}',
    ],
)
def test_a_damaged_index_is_written_anew(files: list[Path], tmp_path: Path, content: bytes) -> None:
    index = tmp_path / "index"
    index.write_bytes(content)
    first, hashed = digest(files, index)
    assert hashed > 0
    assert digest(files, index) == (first, 0)


def test_an_index_that_cannot_be_written_is_done_without(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    index = tmp_path / "file" / "index"
    assert digest(files, index) == digest(files, index)


def test_the_index_stays_small(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_MOST_REMEMBERED", 1)
    digest(files[:1], tmp_path / "index")
    digest(files[1:], tmp_path / "index")
    assert list(json.loads((tmp_path / "index").read_bytes())["files"]) == [str(files[1])]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        weights_digest([tmp_path / "none"], index=tmp_path / "index")


def test_a_file_that_changes_while_it_is_read(files: list[Path], tmp_path: Path) -> None:
    @contextmanager
    def appending(
        description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> Iterator[Advance]:
        def advance(count: int) -> None:
            with files[0].open("ab") as file:
                file.write(b"x")

        yield advance

    with pytest.raises(CheckpointError, match="changed while it was read"):
        weights_digest(files, progress=appending, index=tmp_path / "index")
