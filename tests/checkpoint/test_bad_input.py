"""What is no checkpoint at all, or none that may be read: file, reason and remedy are named."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import CheckpointError
from tests.support.model_files import safetensors_by_hand, small_gguf

EMPTY = safetensors_by_hand({})
ZIP = b"PK\x03\x04" + bytes(60)


def files(**contents: bytes) -> Callable[[Path], None]:
    """A folder with these files; two underscores stand for a dot."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return make


CONFIG = b'{"model_type": "llama"}'
FOLDERS = {
    "empty": (files(), "is an empty folder", "config.json and safetensors"),
    "no weights": (files(config__json=CONFIG), "holds no weights", "safetensors"),
    "no config": (files(model__safetensors=EMPTY), r"no config\.json", "Download config.json"),
    "pickle": (
        files(config__json=CONFIG, pytorch_model__bin=ZIP),
        r"only as pickle \(pytorch_model\.bin\).*runs whatever code",
        "safetensors",
    ),
    "several pickles": (
        files(a__pt=ZIP, b__pth=ZIP, c__bin=ZIP, d__ckpt=ZIP),
        r"a\.pt, b\.pth, c\.bin, …",
        "convert",
    ),
    "leftovers of training": (
        files(config__json=CONFIG, training_args__bin=ZIP),
        "holds no weights",
        "safetensors",
    ),
    "other formats": (files(model__onnx=b"", tf_model__h5=b""), "only in other formats", ".gguf"),
    "adapter": (
        files(adapter_config__json=b"{}", adapter_model__safetensors=EMPTY),
        "adapter",
        "merge_and_unload",
    ),
    "two GGUF files": (
        files(a__gguf=small_gguf(), b__gguf=small_gguf()),
        r"2 \.gguf files .*: a\.gguf, b\.gguf",
        "the one to use",
    ),
    "two safetensors files": (
        files(config__json=CONFIG, a__safetensors=EMPTY, b__safetensors=EMPTY),
        r"2 \.safetensors files",
        "one model",
    ),
}


@pytest.mark.parametrize(("make", "reason", "remedy"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folder(tmp_path: Path, make: Callable[[Path], None], reason: str, remedy: str) -> None:
    make(tmp_path)
    with pytest.raises(CheckpointError, match=reason) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.subject == str(tmp_path)
    assert remedy in raised.value.remedy


FILES = {
    "m.txt": (b"hello", "neither a folder with a model nor a GGUF file", ".gguf"),
    "empty": (b"", "neither", ".gguf"),
    "m.gguf": (b"hello world", "not a GGUF file: it begins with b'hell'", "Download"),
    "m.safetensors": (EMPTY, "config.json beside it", "folder"),
    "model.safetensors.index.json": (b"{}", "config.json beside it", "folder"),
    "m.bin": (ZIP, "only as pickle", "safetensors"),
    "old.pth": (b"\x80\x02}q\x00.", "only as pickle", "safetensors"),
}


@pytest.mark.parametrize("name", FILES)
def test_file(tmp_path: Path, name: str) -> None:
    content, reason, remedy = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        open_checkpoint(path)
    assert raised.value.subject == str(path)
    assert remedy in raised.value.remedy


@pytest.mark.parametrize("name", ["missing", "missing.gguf", "missing/folder", "x" * 5000, "a\0b"])
def test_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist|cannot be read") as raised:
        open_checkpoint(tmp_path / name)
    assert raised.value.remedy


def test_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    """Caches of a hub name files by their digests."""
    path = tmp_path / "0123abcd"
    path.write_bytes(small_gguf())
    assert open_checkpoint(str(path)).kind == "gguf"


def test_image_encoder_beside_a_gguf_file_is_passed_over(tmp_path: Path) -> None:
    files(a__gguf=small_gguf())(tmp_path)
    (tmp_path / "mmproj-a.gguf").write_bytes(small_gguf())
    assert [file.name for file in open_checkpoint(tmp_path).files] == ["a.gguf"]


def test_lone_safetensors_file_of_another_name(tmp_path: Path) -> None:
    files(config__json=CONFIG, weights__safetensors=EMPTY)(tmp_path)
    assert [file.name for file in open_checkpoint(tmp_path).files] == ["weights.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_named_pipe_does_not_block(tmp_path: Path, name: str) -> None:
    files(config__json=CONFIG, model__safetensors=EMPTY)(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / name)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    files(config__json=CONFIG)(tmp_path)
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    files(config__json=CONFIG, model__safetensors=EMPTY)(tmp_path)
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(tmp_path)


def test_pickle_is_refused_without_being_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    import pickle

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "config.json").write_bytes(CONFIG)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match="pickle"):
            open_checkpoint(path)
    assert not (tmp_path / "ran").exists()
