"""config.json, generation_config.json, and what GGUF says in their place."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.config import asks_for_code, read_config
from firstlight.checkpoint.generation import GenerationDefaults, generation_of_folder
from firstlight.checkpoint.json_file import LARGEST_CONFIG, read_json_object
from firstlight.errors import CheckpointError
from tests.support.model_files import gguf_by_hand, gguf_key, gguf_string


def test_config_is_read_as_it_stands(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "eps": 1e-6,
        "n": -(2**63),
        "big": 2**63 - 1,
        "名": [None, True],
    }
    (tmp_path / "config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    assert read_config(tmp_path) == config
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8-sig")
    assert read_config(tmp_path) == config


def test_infinity_stays_text(tmp_path: Path) -> None:
    """transformers writes it into real configs; as a string no arithmetic can meet it unawares."""
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity, -Infinity]}')
    assert read_config(tmp_path) == {"time_step_limit": [0.0, "Infinity", "-Infinity"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1, column 2"),
        (b"[]", "a JSON array where an object belongs"),
        (b'"x"', "a JSON string"),
        (b"1", "a JSON number"),
        (b"null", "a JSON constant"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large for a float"),
        (b'{"a": ' + b"1" * 41 + b"}", "more than 40 digits"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "more than 40 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "gives 'c' twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud83d"}', "not Unicode"),
        (b'{"\\udc00": 1}', "not Unicode"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "over 64 levels"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b" " * (LARGEST_CONFIG + 1), "reads at most 16,777,216"),
    ],
)
def test_config_that_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as raised:
        read_config(tmp_path)
    assert raised.value.subject == str(path) and raised.value.remedy


def test_integers_past_64_bits_are_floats(tmp_path: Path) -> None:
    """As the `model_max_length` that transformers writes for a tokenizer without one."""
    config = {"model_max_length": int(1e30), "a": (1 << 63) - 1, "b": 1 << 63, "c": -(1 << 63)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_config(tmp_path)
    assert found == {"model_max_length": 1e30, "a": (1 << 63) - 1, "b": 2.0**63, "c": -(1 << 63)}
    assert [type(value) for value in found.values()] == [float, int, float, int]


def test_deepest_config_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": ' + b"[" * 63 + b"1" + b"]" * 63 + b"}")
    assert read_json_object(path).keys() == {"a"}


def test_config_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("auto_map", "file"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"AutoConfig": 1, "AutoModel": [None]}, None),
        ({"AutoConfig": "configuration_phi3.Phi3Config"}, "configuration_phi3.py"),
        (
            {"AutoConfig": "a.A", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
            "modeling_phi3.py",
        ),
        ({"AutoTokenizer": ["tokenization_x.Slow", None]}, "tokenization_x.py"),
        ({"AutoModel": "org/code--modeling.M"}, "org/code/modeling.py"),
        ({"AutoModel": "package.modeling.M"}, "package/modeling.py"),
    ],
)
def test_asks_for_code(auto_map: Any, file: str | None) -> None:
    config = {} if auto_map is None else {"auto_map": auto_map}
    assert asks_for_code(config) == file


def generation(folder: Path, values: Any, config: dict[str, Any]) -> GenerationDefaults:
    if values is not None:
        (folder / "generation_config.json").write_text(json.dumps(values))
    return generation_of_folder(folder, config)


def test_generation_config_of_llama_3(tmp_path: Path) -> None:
    values = {
        "bos_token_id": 128000,
        "do_sample": True,
        "eos_token_id": [128001, 128008, 128009],
        "temperature": 0.6,
        "top_p": 0.9,
        "transformers_version": "4.42.3",
    }
    assert generation(tmp_path, values, {"eos_token_id": 7}) == GenerationDefaults(
        stop_token_ids=(128001, 128008, 128009), do_sample=True, temperature=0.6, top_p=0.9
    )


@pytest.mark.parametrize(
    ("values", "config", "ids"),
    [
        (None, {}, ()),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": None, "text_config": {"eos_token_id": [1, 106]}}, (1, 106)),
        ({}, {"eos_token_id": [5, 6, 5]}, (5, 6)),
        ({"eos_token_id": None}, {"eos_token_id": 2}, (2,)),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (0,)),
        ({"eos_token_id": -1}, {}, ()),
    ],
)
def test_stop_tokens(
    tmp_path: Path, values: Any, config: dict[str, Any], ids: tuple[int, ...]
) -> None:
    assert generation(tmp_path, values, config).stop_token_ids == ids


def test_generation_config_with_everything(tmp_path: Path) -> None:
    values = {
        "do_sample": False,
        "temperature": 0,
        "top_k": -1,
        "top_p": 1,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 2048.0,
        "stop_strings": ["###", ""],
    }
    read = generation(tmp_path, values, {})
    assert read == GenerationDefaults(
        stop_strings=("###",),
        do_sample=False,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.05,
        repetition_penalty=1.1,
        max_new_tokens=2048,
    )
    assert type(read.temperature) is float and type(read.max_new_tokens) is int
    assert generation(tmp_path, dict.fromkeys(values), {}) == GenerationDefaults()


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", "2"), ("eos_token_id", [1, True]), ("eos_token_id", 1.0),
     ("eos_token_id", 1 << 31), ("eos_token_id", {"a": 1}), ("do_sample", 1), ("do_sample", "no"),
     ("temperature", -0.1), ("temperature", "hot"), ("temperature", True), ("top_k", 1.5),
     ("top_p", 1.01), ("top_p", []), ("min_p", -1), ("repetition_penalty", 0),
     ("max_new_tokens", 0), ("stop_strings", [1]), ("stop_strings", {"a": 1})],
)  # fmt: skip
def test_generation_config_that_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key) as raised:
        generation(tmp_path, {key: value}, {})
    assert raised.value.subject == str(tmp_path / "generation_config.json")
    assert "remove" in raised.value.remedy


def test_stop_token_of_config_is_blamed_on_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        generation(tmp_path, {}, {"eos_token_id": "x"})
    assert raised.value.subject == str(tmp_path / "config.json")


def tokens(*texts: str, types: list[int] | None = None) -> list[bytes]:
    strings = b"".join(map(gguf_string, texts))
    keys = [gguf_key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(texts)) + strings)]
    if types is not None:
        packed = struct.pack(f"<IQ{len(types)}i", 5, len(types), *types)
        keys.append(gguf_key("tokenizer.ggml.token_type", 9, packed))
    return keys


def u32(key: str, value: int) -> bytes:
    return gguf_key(key, 4, struct.pack("<I", value))


def f32(key: str, value: float) -> bytes:
    return gguf_key(key, 6, struct.pack("<f", value))


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ([], ()),
        ([u32("tokenizer.ggml.eos_token_id", 2)], (2,)),
        (
            [
                u32("tokenizer.ggml.eot_token_id", 5),
                u32("tokenizer.ggml.eos_token_id", 2),
                u32("tokenizer.ggml.eom_token_id", 5),
            ],
            (2, 5),
        ),
        ([u32("tokenizer.ggml.eos_token_id", 2**32 - 1)], ()),
        ([gguf_key("tokenizer.ggml.eos_token_id", 5, struct.pack("<i", -1))], ()),
        # Known by their text, but only if the file says that they are control tokens.
        (tokens("a", "<|im_end|>", "<|end|>", types=[1, 3, 1]), (1,)),
        (tokens("a", "<|im_end|>", types=[1]), ()),
        (tokens("a", "<|im_end|>"), ()),
        ([*tokens("a", "<|im_end|>", types=[1, 3]), u32("tokenizer.ggml.eos_token_id", 1)], (1,)),
    ],
)
def test_stop_tokens_of_gguf(tmp_path: Path, keys: list[bytes], ids: tuple[int, ...]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_by_hand(keys, []))
    assert open_checkpoint(path).generation.stop_token_ids == ids


def test_sampling_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sampling = [
        f32("general.sampling.temp", -1.0),
        gguf_key("general.sampling.top_k", 5, struct.pack("<i", -5)),
        f32("general.sampling.top_p", 0.5),
        f32("general.sampling.min_p", 0.25),
        f32("general.sampling.penalty_repeat", 1.5),
    ]
    path.write_bytes(gguf_by_hand(sampling, []))
    assert open_checkpoint(path).generation == GenerationDefaults(
        temperature=0.0, top_k=0, top_p=0.5, min_p=0.25, repetition_penalty=1.5
    )


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([gguf_key("tokenizer.ggml.eos_token_id", 8, gguf_string("2"))], "eos_token_id '2'"),
        ([gguf_key("tokenizer.ggml.eos_token_id", 7, b"\x01")], "eos_token_id True"),
        (
            [gguf_key("tokenizer.ggml.eos_token_id", 9, struct.pack("<IQ2I", 4, 2, 1, 2))],
            "eos_token_id",
        ),
        ([*tokens("a", "b"), u32("tokenizer.ggml.eos_token_id", 2)], "eos_token_id 2"),
        ([f32("general.sampling.top_p", 2.0)], r"general\.sampling\.top_p 2\.0"),
    ],
)
def test_generation_of_gguf_that_is_refused(tmp_path: Path, keys: list[bytes], reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_by_hand(keys, []))
    checkpoint = open_checkpoint(path)  # inspecting such a file must still be possible
    with pytest.raises(CheckpointError, match=reason) as raised:
        _ = checkpoint.generation
    assert raised.value.subject == str(path)
