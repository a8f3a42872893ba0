"""GGUF files that are cut off, or lie."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.gguf import read_header
from firstlight.checkpoint.gguf_values import (
    MOST_NESTED_ARRAYS,
    MOST_STRINGS,
    MOST_TEXT,
)
from firstlight.errors import CheckpointError, FormatError
from tests.support.gguf_writer import write_gguf
from tests.support.model_files import (
    gguf_by_hand,
    gguf_key,
    gguf_string,
    gguf_tensor,
    small_gguf,
)


def test_file_cut_at_every_byte(tmp_path: Path) -> None:
    whole = small_gguf()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    assert len(open_checkpoint(path).tensors) == 3
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as raised:
            open_checkpoint(path)
        assert raised.value.subject == str(path) and raised.value.remedy


def test_padding_after_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    """llama.cpp's tools differ in whether they write it; no tensor needs it."""
    path = tmp_path / "m.gguf"
    for padding in (0, 1, 31):
        path.write_bytes(small_gguf() + bytes(padding))
        assert len(open_checkpoint(path).tensors) == 3


F32 = 0
KEY = gguf_key("k", 4, struct.pack("<I", 1))


def strings_of_lengths(*lengths: int) -> bytes:
    return struct.pack("<IQ", 8, len(lengths)) + b"".join(struct.pack("<Q", n) for n in lengths)


LIES = {
    "empty": (b"", "not a GGUF file"),
    "another magic": (b"GGML" + bytes(60), "begins with b'GGML'"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version 1": (gguf_by_hand([], [], version=1), "GGUF version 1"),
    "version 4": (gguf_by_hand([], [], version=4), "GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2**60 keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "keys in 24 bytes"),
    "2**60 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors in 24 bytes"),
    "long string": (gguf_by_hand([gguf_key("k", 8, struct.pack("<Q", 1 << 62))], []), "within 'k'"),
    "key not UTF-8": (gguf_by_hand([gguf_key(b"\xff", 4, bytes(4))], []), "not UTF-8"),
    "key empty": (gguf_by_hand([gguf_key("", 4, bytes(4))], []), "empty key"),
    "key twice": (gguf_by_hand([KEY, KEY], []), "key 'k' twice"),
    "value type": (gguf_by_hand([gguf_key("k", 13, bytes(8))], []), "value type 13"),
    "item type": (gguf_by_hand([gguf_key("k", 9, struct.pack("<IQ", 13, 1))], []), "item type 13"),
    "NaN": (gguf_by_hand([gguf_key("k", 6, struct.pack("<f", float("nan")))], []), "value nan"),
    "infinity": (gguf_by_hand([gguf_key("k", 12, struct.pack("<d", float("inf")))], []), "inf"),
    "long array": (
        gguf_by_hand([gguf_key("k", 9, struct.pack("<IQ", 12, 1 << 61))], []),
        "lies about its lengths",
    ),
    "many strings": (
        gguf_by_hand([gguf_key("k", 9, struct.pack("<IQ", 8, 1 << 61))], []),
        "lies about its lengths",
    ),
    "many arrays": (
        gguf_by_hand([gguf_key("k", 9, struct.pack("<IQ", 9, 1 << 61))], []),
        "lies about its lengths",
    ),
    "string past the end": (
        gguf_by_hand([gguf_key("k", 9, strings_of_lengths(1 << 20, 0))], [], bytes(64)),
        "runs past its end",
    ),
    "string past 64 bits": (
        gguf_by_hand([gguf_key("k", 9, strings_of_lengths((1 << 64) - 1, 0))], [], bytes(64)),
        "runs past its end",
    ),
    "deep arrays": (
        gguf_by_hand([gguf_key("k", 9, struct.pack("<IQ", 9, 1) * 50)], []),
        "over 8 deep",
    ),
    "alignment 0": (
        gguf_by_hand([gguf_key("general.alignment", 4, struct.pack("<I", 0))], []),
        "no power of two",
    ),
    "alignment 48": (
        gguf_by_hand([gguf_key("general.alignment", 4, struct.pack("<I", 48))], []),
        "no power of two",
    ),
    "alignment a string": (
        gguf_by_hand([gguf_key("general.alignment", 8, gguf_string("32"))], []),
        "no power of two",
    ),
    "tensor twice": (
        gguf_by_hand([], [gguf_tensor("a", (8,), F32, 0)] * 2, bytes(32)),
        "'a' twice",
    ),
    "tensor name": (gguf_by_hand([], [gguf_tensor(b"\xff", (8,), F32, 0)], bytes(32)), "not UTF-8"),
    "five axes": (gguf_by_hand([], [gguf_tensor("a", (1,) * 5, F32, 0)], bytes(32)), "5 axes"),
    "2**32 - 1 axes": (
        gguf_by_hand([], [gguf_string("a") + struct.pack("<I", 2**32 - 1)], bytes(32)),
        "4,294,967,295 axes",
    ),
    "overflowing shape": (
        gguf_by_hand([], [gguf_tensor("a", (1 << 40, 1 << 40, 0), F32, 0)], bytes(32)),
        "beyond addressing",
    ),
    "huge shape": (
        gguf_by_hand([], [gguf_tensor("a", (1 << 40,), F32, 0)], bytes(32)),
        "cut short",
    ),
    "rows of half blocks": (
        gguf_by_hand([], [gguf_tensor("a", (2, 16), 8, 0)], bytes(64)),
        "blocks of 32",
    ),
    "misaligned": (gguf_by_hand([], [gguf_tensor("a", (1,), F32, 4)], bytes(64)), "no multiple"),
    "offset past the end": (
        gguf_by_hand([], [gguf_tensor("a", (8,), F32, 1 << 62)], bytes(32)),
        "cut short",
    ),
    "offset of an unknown type past the end": (
        gguf_by_hand([], [gguf_tensor("a", (8,), 999, 1 << 62)], bytes(32)),
        "cut short",
    ),
    "overlap": (
        gguf_by_hand(
            [], [gguf_tensor("a", (16,), F32, 0), gguf_tensor("b", (1,), F32, 32)], bytes(64)
        ),
        "'a' overlap",
    ),
    "same place": (
        gguf_by_hand(
            [], [gguf_tensor("a", (1,), F32, 0), gguf_tensor("b", (1,), F32, 0)], bytes(64)
        ),
        "overlap",
    ),
}


@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES.keys())
def test_header_that_lies(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        open_checkpoint(path)
    assert raised.value.subject == str(path) and raised.value.remedy
    assert len(str(raised.value)) < 500 and str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (gguf_key("k", 8, struct.pack("<Q", MOST_TEXT + 1)), "bytes of text"),
        (gguf_key("k", 9, strings_of_lengths(MOST_TEXT)), "bytes of text"),
        (gguf_key("k", 9, struct.pack("<IQ", 8, MOST_STRINGS + 1)), "lies about its lengths"),
        (gguf_key("k", 9, struct.pack("<IQ", 9, MOST_NESTED_ARRAYS + 1)), "lies about its lengths"),
    ],
)
def test_large_file_cannot_make_its_header_large(tmp_path: Path, key: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_by_hand([key], []))
    os.truncate(path, 1 << 30)  # sparse: the file could hold what its header says
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=reason):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_big_endian_file_of_the_package_is_named_as_such(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        lambda writer: writer.add_tensor("a", np.zeros(4, np.float32)),
        endianess=gguf.GGUFEndian.BIG,
    )
    with pytest.raises(CheckpointError, match="big-endian") as raised:
        open_checkpoint(path)
    assert "gguf_convert_endian" in raised.value.remedy


@pytest.mark.parametrize(("number", "name"), [(999, "ggml_type_999"), (31, "q4_0_4_4")])
def test_unknown_type_is_kept_by_name_until_its_weight_is_asked_for(
    tmp_path: Path, number: int, name: str
) -> None:
    path = tmp_path / "m.gguf"
    tensors = [gguf_tensor("new", (32,), number, 0), gguf_tensor("old", (8,), F32, 64)]
    path.write_bytes(gguf_by_hand([], tensors, bytes(96)))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.tensors["new"].format, checkpoint.tensors["new"].nbytes) == (name, 64)
    assert checkpoint.weight("old").values().tolist() == [0] * 8
    with pytest.raises(FormatError, match=name) as raised:
        checkpoint.weight("new")
    assert raised.value.subject == str(path) and "'new'" in raised.value.reason
