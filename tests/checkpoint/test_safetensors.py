"""The safetensors reader against the safetensors package, and against headers that lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors

from firstlight.checkpoint.checkpoint import Checkpoint, open_checkpoint
from firstlight.checkpoint.safetensors import BITS, read_header
from firstlight.errors import CheckpointError, FormatError
from tests.support.model_files import (
    SAFETENSORS_DTYPES,
    entry,
    safetensors_by_hand,
    safetensors_by_package,
    write_folder,
    write_index,
)


def random_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8).tobytes()


def test_every_dtype_and_shape_that_the_package_writes(tmp_path: Path) -> None:
    shapes = [(), (1,), (0,), (6,), (3, 4), (2, 0, 5), (2, 3, 2, 2)]
    written = {}
    for dtype in SAFETENSORS_DTYPES:
        for shape in shapes:
            if dtype == "F4" and (not shape or shape[-1] % 2):
                continue
            # A shape is of values; the package takes that of float4 in pairs, as PyTorch has it.
            count = int(np.prod(shape)) * BITS[dtype] // 8
            passed = (*shape[:-1], shape[-1] // 2) if dtype == "F4" else shape
            written[f"{dtype} {shape}"] = dtype, passed, random_bytes(count, len(written))
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_by_package(written))

    header = read_header(path)

    raw = path.read_bytes()
    expected = dict(safetensors.deserialize(raw))
    assert header.tensors.keys() == expected.keys() == written.keys()
    for name, info in header.tensors.items():
        assert info.shape == tuple(expected[name]["shape"])
        assert info.format == expected[name]["dtype"].lower()
        assert raw[info.offset : info.offset + info.nbytes] == bytes(expected[name]["data"])
        assert info.file == path


def test_table_of_dtypes_is_the_package_s() -> None:
    probe = safetensors_by_hand({"x": entry("NO_SUCH_DTYPE", [1], 0, 1)}, b"0")
    with pytest.raises(safetensors.SafetensorError) as raised:
        safetensors.deserialize(probe)
    listed = str(raised.value).split("expected one of")[1].split(" at line")[0]
    assert {name.strip(" `") for name in listed.split(",")} == BITS.keys()
    for dtype, bits in BITS.items():
        file = safetensors_by_hand({"x": entry(dtype, [8], 0, bits)}, bytes(bits))
        assert safetensors.deserialize(file)[0][1]["dtype"] == dtype


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("F32", "<f4"), ("F16", "<f2")])
def test_weight_values(tmp_path: Path, dtype: str, numpy_dtype: str) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5, 7)).astype(numpy_dtype)
    content = safetensors_by_package({"w": (dtype, values.shape, values.tobytes())})
    weight = open_checkpoint(write_folder(tmp_path, {"model.safetensors": content})).weight("w")
    assert (weight.format.name, weight.shape, weight.name) == (dtype.lower(), (3, 5, 7), "w")
    assert weight.data.shape == (15, 7 * values.itemsize)
    np.testing.assert_array_equal(weight.values(), values.astype(np.float32))


def test_scalar_and_empty_weights(tmp_path: Path) -> None:
    content = safetensors_by_package(
        {"scalar": ("F32", (), np.float32(2.5).tobytes()), "empty": ("BF16", (0, 4), b"")}
    )
    checkpoint = open_checkpoint(write_folder(tmp_path, {"model.safetensors": content}))
    assert checkpoint.tensors["scalar"].shape == ()
    assert checkpoint.weight("scalar").values().tolist() == [2.5]
    assert checkpoint.weight("empty").values().shape == (0, 4)


def test_largest_empty_shape_can_be_a_weight(tmp_path: Path) -> None:
    header = {"w": entry("F64", [1 << 56, 0], 0, 0)}
    folder = write_folder(tmp_path, {"model.safetensors": safetensors_by_hand(header)})
    assert open_checkpoint(folder).weight("w").values().shape == (1 << 56, 0)


def test_unknown_dtype_is_kept_by_name_until_its_weight_is_asked_for(tmp_path: Path) -> None:
    content = safetensors_by_hand(
        {"new": entry("F3_E1M1", [8], 0, 3), "integer": entry("I64", [1], 3, 11)}, bytes(11)
    )
    checkpoint = open_checkpoint(write_folder(tmp_path, {"model.safetensors": content}))
    assert checkpoint.tensors["new"].format == "f3_e1m1"
    assert checkpoint.tensors["new"].nbytes == 3
    for name, format in (("new", "f3_e1m1"), ("integer", "i64")):
        with pytest.raises(FormatError, match=format) as raised:
            checkpoint.weight(name)
        assert raised.value.subject.endswith("model.safetensors")
        assert name in raised.value.reason


def test_dtype_named_like_an_alias_is_not_taken_for_it(tmp_path: Path) -> None:
    content = safetensors_by_hand({"w": entry("INT8", [32], 0, 32)}, bytes(32))
    checkpoint = open_checkpoint(write_folder(tmp_path, {"model.safetensors": content}))
    with pytest.raises(FormatError, match="int8"):
        checkpoint.weight("w")


A = {"a": entry("F32", [2], 0, 8)}
LIES = {
    "no header": (b"\x01\x02", "too few"),
    "over 100 MB of header": ((100_000_001).to_bytes(8, "little") + b"{}", "100,000,000"),
    "header longer than the file": ((50).to_bytes(8, "little") + b"{}", "cut short"),
    "empty header": (safetensors_by_hand(b""), "does not start with"),
    "leading space": (safetensors_by_hand(b" {}"), "does not start with"),
    "not JSON": (safetensors_by_hand(b"{'a'}"), "not valid JSON"),
    "not UTF-8": (safetensors_by_hand(b'{"\xff": 1}'), "not UTF-8"),
    "NaN": (safetensors_by_hand(b'{"a": NaN}'), "NaN"),
    "nested": (safetensors_by_hand(b'{"a":' * 100_000), "nested"),
    "5,000 digits": (safetensors_by_hand(b'{"a":' + b"9" * 5000 + b"}"), "too many digits"),
    "entry no object": (safetensors_by_hand({"a": 1}), "lacks"),
    "entry a string": (safetensors_by_hand({"a": "dtype"}), "lacks"),
    "no dtype": (safetensors_by_hand({"a": {"shape": [], "data_offsets": [0, 0]}}), "lacks"),
    "three offsets": (
        safetensors_by_hand({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}),
        "lacks",
    ),
    "dtype a list": (
        safetensors_by_hand({"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}),
        "has dtype",
    ),
    "negative axis": (safetensors_by_hand({"a": entry("U8", [-1, -1], 0, 1)}, b"0"), "has shape"),
    "axis a boolean": (safetensors_by_hand({"a": entry("U8", [True], 0, 1)}, b"0"), "has shape"),
    "axis a float": (safetensors_by_hand({"a": entry("U8", [1.0], 0, 1)}, b"0"), "has shape"),
    "33 axes": (safetensors_by_hand({"a": entry("U8", [1] * 33, 0, 1)}, b"0"), "has shape"),
    "64-bit overflow": (
        safetensors_by_hand({"a": entry("U8", [1 << 62, 4, 0], 0, 0)}),
        "beyond addressing",
    ),
    "shape too large": (safetensors_by_hand({"a": entry("F32", [3], 0, 8)}, bytes(8)), "needs 12"),
    "shape too small": (safetensors_by_hand({"a": entry("F32", [1], 0, 8)}, bytes(8)), "needs 4"),
    "half a byte": (safetensors_by_hand({"a": entry("F4", [3], 0, 1)}, b"0"), "needs 1.5"),
    "backwards": (safetensors_by_hand({"a": entry("U8", [1], 1, 0)}, b"0"), "data_offsets"),
    "negative offset": (safetensors_by_hand({"a": entry("U8", [1], -1, 0)}, b"0"), "data_offsets"),
    "float offset": (safetensors_by_hand({"a": entry("U8", [1], 0, 1.0)}, b"0"), "data_offsets"),
    "hole at the start": (safetensors_by_hand({"a": entry("U8", [1], 1, 2)}, b"00"), "hole"),
    "hole": (
        safetensors_by_hand({**A, "b": entry("U8", [1], 9, 10)}, bytes(10)),
        "leaves a hole",
    ),
    "overlap": (safetensors_by_hand({**A, "b": entry("U8", [1], 7, 8)}, bytes(8)), "overlaps"),
    "cut short": (safetensors_by_hand(A, bytes(7)), "cut short"),
    "bytes left over": (safetensors_by_hand(A, bytes(9)), "1 bytes after its last tensor"),
    "name twice": (
        safetensors_by_hand(b'{"a":%b,"a":%b}' % ((json.dumps(A["a"]).encode(),) * 2), bytes(8)),
        "gives 'a' twice",
    ),
    "field twice": (
        safetensors_by_hand(b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "gives 'dtype' twice",
    ),
    "half a surrogate pair": (
        safetensors_by_hand(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "not Unicode",
    ),
    "metadata not text": (safetensors_by_hand({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata no object": (safetensors_by_hand({"__metadata__": []}), "__metadata__"),
    "control characters": (safetensors_by_hand({"\x1b[31m": 1}), r"\\x1b"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES.keys())
def test_header_that_lies(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        open_checkpoint(folder)
    assert raised.value.subject == str(folder / "model.safetensors")
    assert raised.value.remedy
    assert len(str(raised.value)) < 700 and str(raised.value).isprintable()


def test_file_cut_at_every_byte(tmp_path: Path) -> None:
    whole = safetensors_by_package({"a": ("F32", (2, 2), bytes(16)), "b": ("U8", (3,), b"123")})
    folder = write_folder(tmp_path, {"model.safetensors": whole})
    assert len(open_checkpoint(folder).tensors) == 2
    for length in range(len(whole)):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    shards = {
        f"model-{number:05d}-of-00003.safetensors": safetensors_by_package(
            {
                f"layers.{number}.{part}": ("F32", (2, 3), random_bytes(24, 10 * number + part))
                for part in range(2)
            }
        )
        for number in (1, 2, 3)
    }
    return write_folder(tmp_path / "sharded", shards)


def test_shards(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert [file.name for file in checkpoint.files] == sorted(
        file.name for file in sharded.glob("*.safetensors")
    )
    assert len(checkpoint.tensors) == 6
    for number in (1, 2, 3):
        for part in range(2):
            data = checkpoint.weight(f"layers.{number}.{part}").data
            assert data.tobytes() == random_bytes(24, 10 * number + part)


def test_shards_without_their_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert len(open_checkpoint(sharded).tensors) == 6
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="nothing that says which is the model"):
        open_checkpoint(sharded)


def test_shards_as_links_into_a_cache(sharded: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.weight("layers.3.1").data.tobytes() == random_bytes(24, 31)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 are missing .*model-00002-of-00003") as raised:
        open_checkpoint(sharded)
    assert "Download" in raised.value.remedy


def test_truncated_shard(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="cut short") as raised:
        open_checkpoint(sharded)
    assert raised.value.subject == str(shard)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "a/../../b.safetensors", "/etc/x.safetensors", "C:\\x.safetensors",
     "..\\x.safetensors", "\\\\host\\x.safetensors", "x.bin", "", "a\x00.safetensors",
     "x" * 300 + ".safetensors", "\x1b[0m.safetensors", "a\ud800.safetensors"],
)  # fmt: skip
def test_index_that_points_elsewhere(sharded: Path, name: str) -> None:
    # The file is there: it is refused for where it lies, not because it is missing.
    (sharded.parent / "model.safetensors").write_bytes(safetensors_by_hand({}))
    index = write_index(sharded, {"a": name})
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file inside") as raised:
        open_checkpoint(sharded)
    assert raised.value.subject == str(index)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}, []]
)
def test_index_that_is_none(sharded: Path, index: object) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(sharded)
    assert raised.value.subject == str(path)


def test_index_and_shard_contradict_each_other(sharded: Path) -> None:
    first, second = sorted(file.name for file in sharded.glob("*.safetensors"))[:2]
    write_index(sharded, {"layers.1.0": first, "layers.9.9": second})
    with pytest.raises(CheckpointError, match=r"lacks tensor 'layers\.9\.9'"):
        open_checkpoint(sharded)


def test_tensor_that_the_index_does_not_mention_is_kept(sharded: Path) -> None:
    first = min(file.name for file in sharded.glob("*.safetensors"))
    write_index(sharded, {"layers.1.0": first})
    assert open_checkpoint(sharded).tensors.keys() == {"layers.1.0", "layers.1.1"}


def test_index_decides_between_two_copies(tmp_path: Path) -> None:
    shards = {
        f"{name}.safetensors": safetensors_by_package(
            {"w": ("U8", (1,), name.encode()), name: ("U8", (1,), b"0")}
        )
        for name in "ab"
    }
    folder = write_folder(tmp_path, shards)
    for name in "ab":
        write_index(
            folder, {"a": "a.safetensors", "b": "b.safetensors", "w": f"{name}.safetensors"}
        )
        assert open_checkpoint(folder).tensors["w"].file.name == f"{name}.safetensors"
    write_index(folder, {"a": "a.safetensors", "b": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"holds tensor 'w', and so does a\.safetensors"):
        open_checkpoint(folder)


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """A terabyte in sparse files opens at once; reading it would take minutes."""
    size = 128 << 30
    weight_map = {}
    for number in range(8):
        name = f"part-{number}.safetensors"
        tensors = {
            f"{number}.{part}": entry("U8", [size], part * size, (part + 1) * size)
            for part in range(2)
        }
        content = safetensors_by_hand(tensors)
        try:
            with (tmp_path / name).open("wb") as file:
                file.write(content)
                file.truncate(len(content) + 2 * size)
        except OSError:
            pytest.skip("this file system has no sparse files of 256 GiB")
        weight_map.update(dict.fromkeys(tensors, name))
    write_index(tmp_path, weight_map)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert sum(info.nbytes for info in checkpoint.tensors.values()) == 16 * size


def mapped(folder: Path) -> int:
    """How many mappings of the folder's files this process holds."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(folder) in line for line in maps)


@pytest.mark.skipif(sys.platform != "linux", reason="counts mappings in /proc")
def test_each_shard_is_mapped_once_when_first_used_and_given_back(sharded: Path) -> None:
    files_before = psutil.Process().num_fds()
    checkpoint: Checkpoint | None = open_checkpoint(sharded)
    assert checkpoint is not None
    assert (mapped(sharded), psutil.Process().num_fds()) == (0, files_before)
    first = checkpoint.weight("layers.1.0")
    again = checkpoint.weight("layers.1.0")
    neighbour = checkpoint.weight("layers.1.1")
    assert mapped(sharded) == 1
    assert np.shares_memory(first.data, again.data)
    assert not np.shares_memory(first.data, neighbour.data)
    assert not first.data.flags.writeable
    other = checkpoint.weight("layers.2.0")
    assert mapped(sharded) == 2
    checkpoint = None
    assert mapped(sharded) == 2  # weights outlive the checkpoint
    assert first.values().shape == other.values().shape == (2, 3)
    del first, again, neighbour, other
    assert (mapped(sharded), psutil.Process().num_fds()) == (0, files_before)


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
def test_refused_files_are_closed(sharded: Path) -> None:
    files_before = psutil.Process().num_fds()
    shard = sharded / "model-00003-of-00003.safetensors"
    os.truncate(shard, 20)
    for _ in range(20):
        with pytest.raises(CheckpointError):
            open_checkpoint(sharded)
    assert (mapped(sharded), psutil.Process().num_fds()) == (0, files_before)


def test_shard_that_changes_between_header_and_weight(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    os.truncate(checkpoint.files[0], 10)
    with pytest.raises(CheckpointError, match="now and had"):
        checkpoint.weight("layers.1.0")
    checkpoint.files[1].unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.weight("layers.2.0")


def test_weight_that_is_not_there(sharded: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tensor 'nope'"):
        open_checkpoint(sharded).weight("nope")
