"""GGUF models in several files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import CheckpointError
from tests.support.gguf_writer import write_gguf
from tests.support.model_files import (
    gguf_string,
)


def parts(folder: Path) -> list[Path]:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)

    def fill(writer: GGUFWriter) -> None:
        writer.add_block_count(6)
        for number, row in enumerate(values):
            writer.add_tensor(f"t{number}", row)

    write_gguf(folder / "m.gguf", fill, split_max_tensors=2)
    return sorted(folder.glob("m-*-of-*.gguf"))


@pytest.mark.parametrize("given", ["first", "last", "folder"])
def test_parts(tmp_path: Path, given: str) -> None:
    paths = parts(tmp_path)
    assert len(paths) == 3
    path = {"first": paths[0], "last": paths[-1], "folder": tmp_path}[given]
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.files) == paths
    assert checkpoint.config["llama.block_count"] == 6
    for number in range(6):
        expected = [2 * number, 2 * number + 1]
        assert checkpoint.weight(f"t{number}").values().tolist() == expected


def test_missing_part(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 are missing \(m-00002-of-00003\.gguf\)"):
        open_checkpoint(paths[0])


def test_part_under_another_name(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    renamed = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="name does not say which") as raised:
        open_checkpoint(renamed)
    assert "-00001-of-00003.gguf" in raised.value.remedy


def test_parts_in_the_wrong_order(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    aside = paths[1].rename(tmp_path / "aside")
    paths[2].rename(paths[1])
    aside.rename(paths[2])
    with pytest.raises(CheckpointError, match="part 2 of 3"):
        open_checkpoint(paths[0])


def test_parts_with_too_few_tensors(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    raw = paths[0].read_bytes()
    key = gguf_string("split.tensors.count")
    at = raw.index(key) + len(key) + 4
    paths[0].write_bytes(raw[:at] + struct.pack("<i", 7) + raw[at + 4 :])
    with pytest.raises(CheckpointError, match="promises 7 tensors in all parts, and they hold 6"):
        open_checkpoint(paths[0])
