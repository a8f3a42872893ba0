"""Whatever the bytes, a reader ends with an answer or with an error of ours, soon and small."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.config import asks_for_code, read_config
from firstlight.checkpoint.generation import generation_of_folder
from firstlight.checkpoint.gguf_values import StringArray
from firstlight.checkpoint.licence import licence_of_folder
from firstlight.checkpoint.safetensors import read_header
from firstlight.errors import CheckpointError, FirstlightError, FormatError
from tests.support.model_files import (
    entry,
    gguf_by_hand,
    safetensors_by_hand,
    safetensors_by_package,
    small_gguf,
)

# Fuzzed files have some kilobytes at most, so nothing made from them may be large.
MOST_MEMORY = 8 << 20

quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def small_and_ours() -> Iterator[None]:
    """Only errors of ours leave the block (they end it), and it allocates little."""
    tracemalloc.start()
    try:
        yield
    except FirstlightError as error:
        assert error.subject and error.reason and error.remedy
        assert len(str(error)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY


def use_everything(path: Path) -> None:
    """Opens a checkpoint and touches all that it offers."""
    checkpoint = open_checkpoint(path)
    assert checkpoint.licence is None or checkpoint.licence.isprintable()
    for value in checkpoint.config.values():
        if isinstance(value, StringArray):
            assert len(value.raw()) == len(list(value)) == len(value)
    for name, info in checkpoint.tensors.items():
        assert 0 <= info.offset <= info.offset + info.nbytes <= info.file.stat().st_size
        try:
            weight = checkpoint.weight(name)
        except FormatError:
            continue
        assert weight.nbytes == info.nbytes
        assert int(weight.data.sum()) >= 0  # every byte can be read
    assert all(0 <= token < 1 << 31 for token in checkpoint.generation.stop_token_ids)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file with a few places overwritten, cut out, doubled, or cut off."""
    content = bytearray(whole)
    interesting = st.sampled_from([0, 1, 7, 8, 9, 127, 255])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.integers(0, 5)):
            case 0:
                content[at : at + 1] = bytes([draw(interesting)])
            case 1:
                number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
                content[at : at + 8] = struct.pack("<Q", number)
            case 2:
                content[at : at + draw(st.integers(1, 16))] = draw(st.binary(max_size=16))
            case 3:
                del content[at : at + draw(st.integers(1, 40))]
            case 4:
                content[at:at] = content[at : at + draw(st.integers(1, 80))]
            case _:
                del content[at:]
    return bytes(content)


@quick
@given(content=st.binary(max_size=400).map(lambda tail: b"GGUF" + tail))
def test_gguf_of_random_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with small_and_ours():
        use_everything(path)


@quick
@given(
    content=st.builds(
        lambda keys, tensors, data: gguf_by_hand(keys, tensors, data),
        st.lists(st.binary(max_size=60), max_size=4),
        st.lists(st.binary(max_size=60), max_size=4),
        st.binary(max_size=64),
    )
)
def test_gguf_with_a_valid_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with small_and_ours():
        use_everything(path)


@quick
@given(content=mutated(small_gguf()))
def test_mutated_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with small_and_ours():
        use_everything(path)


def folder_with(folder: Path, content: bytes, config: bytes = b"{}") -> Path:
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(content)
    return folder


@quick
@given(content=st.binary(max_size=200))
def test_safetensors_of_random_bytes(tmp_path: Path, content: bytes) -> None:
    with small_and_ours():
        use_everything(folder_with(tmp_path, content))


SMALL = safetensors_by_package(
    {
        "model.embed.weight": ("BF16", (4, 2), bytes(range(16))),
        "b": ("F32", (), bytes(4)),
        "c": ("F8_E4M3", (3,), bytes(3)),
    }
)


@quick
@given(content=mutated(SMALL))
def test_mutated_safetensors(tmp_path: Path, content: bytes) -> None:
    with small_and_ours():
        use_everything(folder_with(tmp_path, content))


# Any JSON, with a bias to what breaks readers: huge numbers, lone surrogates, deep nesting.
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=8)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=6) | st.just("dtype"), inner, max_size=4)
    ),
    max_leaves=12,
)
number = st.integers(0, 40) | anything
dtypes = st.sampled_from(["F32", "BF16", "F4", "U8", "XX"]) | anything
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": dtypes,
        "shape": st.lists(number, max_size=4) | anything,
        "data_offsets": st.lists(number, min_size=2, max_size=2) | anything,
    },
)
headers = st.dictionaries(
    st.text(st.characters(exclude_categories=[]), max_size=4) | st.just("__metadata__"),
    entries | anything,
    max_size=4,
)


@quick
@given(header=headers | anything, data=st.binary(max_size=64))
def test_safetensors_with_any_json(tmp_path: Path, header: Any, data: bytes) -> None:
    with small_and_ours():
        use_everything(folder_with(tmp_path, safetensors_by_hand(header, data)))


def like_ours(header: dict[str, Any], data: bytes) -> dict[str, Any] | None:
    try:
        read = dict(safetensors.deserialize(safetensors_by_hand(header, data)))
    except safetensors.SafetensorError:
        return None
    return {
        name: (info["dtype"].lower(), tuple(info["shape"]), bytes(info["data"]))
        for name, info in read.items()
    }


@quick
@given(
    cuts=st.lists(st.integers(0, 24), max_size=4).map(sorted),
    shapes=st.lists(
        st.tuples(
            st.sampled_from(["U8", "F16", "F32", "F4"]), st.lists(st.integers(0, 6), max_size=3)
        ),
        min_size=5,
        max_size=5,
    ),
    fitting=st.booleans(),
    extra=st.integers(-1, 1),
)
def test_safetensors_are_taken_and_refused_as_the_package_does(
    tmp_path: Path,
    cuts: list[int],
    shapes: list[tuple[str, list[int]]],
    fitting: bool,
    extra: int,
) -> None:
    bounds = [0, *cuts, 24]
    header = {}
    for index, (begin, end) in enumerate(pairwise(bounds)):
        dtype, shape = ("U8", [end - begin]) if fitting else shapes[index]
        header[f"t{index}"] = entry(dtype, shape, begin, end)
    data = bytes(range(24 + extra))
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_by_hand(header, data))
    expected = like_ours(header, data)
    if expected is None:
        with pytest.raises(CheckpointError):
            read_header(path)
        return
    raw = path.read_bytes()
    assert {
        name: (info.format, info.shape, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_header(path).tensors.items()
    } == expected


@quick
@given(index=anything | st.fixed_dictionaries({"weight_map": st.dictionaries(
    st.text(max_size=4), st.text(max_size=12).map(lambda name: name + ".safetensors") | anything,
    max_size=3) | anything}))  # fmt: skip
def test_any_index(tmp_path: Path, index: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with small_and_ours():
        use_everything(tmp_path)


known_keys = st.sampled_from(
    ["eos_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
     "max_new_tokens", "stop_strings", "text_config", "auto_map"]
)  # fmt: skip
configs = st.dictionaries(known_keys | st.text(max_size=5), anything, max_size=6) | anything


@quick
@given(config=configs, generation=configs)
def test_any_config(tmp_path: Path, config: Any, generation: Any) -> None:
    folder_with(tmp_path, SMALL, json.dumps(config).encode())
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    with small_and_ours():
        read = read_config(tmp_path)
        json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
        code = asks_for_code(read)
        assert code is None or code.endswith(".py")
        defaults = generation_of_folder(tmp_path, read)
        assert all(isinstance(token, int) for token in defaults.stop_token_ids)


@quick
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("reader", [read_config, lambda folder: generation_of_folder(folder, {})])
def test_config_of_random_bytes(
    tmp_path: Path, reader: Callable[[Path], object], content: bytes
) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes(content)
    with small_and_ours():
        reader(tmp_path)


@quick
@given(readme=st.binary(max_size=200).map(lambda tail: b"---\nlicense" + tail) | st.binary())
def test_any_readme_and_licence_file(tmp_path: Path, readme: bytes) -> None:
    (tmp_path / "README.md").write_bytes(readme)
    (tmp_path / "LICENSE").write_bytes(readme)
    with small_and_ours():
        licence = licence_of_folder(tmp_path)
        assert licence is None or (licence.isprintable() and 0 < len(licence) < 700)
