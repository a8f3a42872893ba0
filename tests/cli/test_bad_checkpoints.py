"""Damaged, hostile and unknown checkpoints: what `run`, `chat` and `inspect` say, and nothing else.

Each ends with exit code 2 and one line that names the file, the reason and what to do. `inspect`
describes a model that cannot run here, with exit code 0, where its files are sound.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.command import assert_refused
from tests.support.model_files import safetensors_by_hand
from tests.support.tiny_chat import TEMPLATE, write_chat_model

SHARD = "model-00002-of-00003.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model in one file."""
    return write_chat_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound model in three shards."""
    return write_chat_model(tmp_path / "sharded", shards=3)


@pytest.fixture
def refused(commands) -> Callable[..., None]:
    """Checks that all commands refuse a model, with an error that has these words."""

    def check(model: Path, *words: str) -> None:
        before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
        for command in (["run", model, "Hello", "-n", "1"], ["chat", model], ["inspect", model]):
            assert_refused(commands(*command, stdin="Hello"), *words)
        assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before

    return check


@pytest.fixture
def described(commands) -> Callable[..., dict[str, Any]]:
    """Checks that a model is refused but described, with these words in both; the description."""

    def check(model: Path, *words: str) -> dict[str, Any]:
        for command in (["run", model, "Hello", "-n", "1"], ["chat", model]):
            assert_refused(commands(*command, stdin="Hello"), *words)
        text = commands("inspect", model)
        assert (text.code, text.err) == (0, "")
        verdict = next(line for line in text.out.splitlines() if line.startswith("runs here"))
        assert verdict.split()[2] == "no."
        report: dict[str, Any] = json.loads(commands("inspect", model, "--json").out)
        assert report["runs"] is False
        for word in words:
            assert word in verdict
            assert word in report["why"]
        return report

    return check


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors header and leave the data as they are."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    path.write_bytes(safetensors_by_hand(header, content[end:]))


def test_sound_models_run(commands, folder, sharded):
    """Else all that follows could be refused for another reason."""
    for model in (folder, sharded):
        assert commands("run", model, "Hello", "-n", "1").code == 0
        assert commands("chat", model, "-n", "1", stdin="Hello").code == 0
        assert json.loads(commands("inspect", model, "--json").out)["runs"] is True


# The files of the weights -----------------------------------------------------------------


def test_missing_shard(refused, sharded):
    (sharded / SHARD).unlink()
    refused(sharded, "model.safetensors.index.json", SHARD, "Download")


@pytest.mark.parametrize("kept", [0, 7, 8, 200, -1])
def test_truncated_shard(refused, sharded, kept):
    content = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(content[:kept])
    refused(sharded, SHARD, "bytes", "Download")


def test_git_lfs_pointer(refused, sharded):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (sharded / SHARD).write_text(pointer)
    refused(sharded, SHARD, "Git LFS", "git lfs pull")


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 10**12], ["needs"]),
        ([-8, 4088], ["data_offsets"]),
        ([4096, 0], ["data_offsets"]),
        (["0", "4096"], ["data_offsets"]),
        ([0, 2**70], ["needs"]),
        (None, ["data_offsets"]),
    ],
)
def test_header_lies_about_offsets(refused, folder, offsets, words):
    rewrite_header(
        folder / "model.safetensors", lambda header: header[QUERY].update(data_offsets=offsets)
    )
    refused(folder, "model.safetensors", QUERY, *words)


def test_header_lets_tensors_overlap(refused, folder):
    def overlap(header: dict[str, Any]) -> None:
        other = "model.layers.1.self_attn.q_proj.weight"
        header[QUERY]["data_offsets"] = header[other]["data_offsets"]

    rewrite_header(folder / "model.safetensors", overlap)
    refused(folder, "model.safetensors", "starts at byte")


def test_header_lies_about_a_shape(refused, folder):
    rewrite_header(
        folder / "model.safetensors", lambda header: header[QUERY].update(shape=[10**6, 10**6])
    )
    refused(folder, "model.safetensors", QUERY, "shape")


@pytest.mark.parametrize("content", [b"\xff" * 100, b"\x05\0\0\0\0\0\0\0{nope", b"PK\x03\x04" * 9])
def test_header_that_is_none(refused, folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors")


def test_index_leads_outside(refused, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"][QUERY] = "../../../etc/passwd"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(sharded, "model.safetensors.index.json", "passwd", "Do not use")


def test_only_pickle(refused, folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cposix\nsystem\n")
    refused(folder, "pickle", "pytorch_model.bin", "safetensors")


def test_no_weights_at_all(refused, folder):
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no weights")


# The tensors ------------------------------------------------------------------------------


def test_missing_tensor(refused, folder):
    change_tensors(folder, lambda tensors: tensors.pop(QUERY))
    refused(folder, str(folder), QUERY, "missing", "llama")


def test_tensor_of_another_shape_than_the_config_says(refused, folder):
    change_tensors(folder, lambda tensors: tensors.update({QUERY: np.zeros((32, 16), np.float32)}))
    refused(folder, str(folder), QUERY, "[32, 16]", "[32, 32]")


def test_config_of_another_size_than_the_tensors(refused, folder):
    change_config(folder, hidden_size=64)
    refused(folder, "shape", "config")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_weights_that_are_no_floats(described, folder, dtype):
    change_tensors(folder, lambda tensors: tensors.update({QUERY: np.zeros((32, 32), dtype)}))
    report = described(folder, "model.safetensors", QUERY)
    assert report["family"] == "llama"
    assert report["layers"] == 2


def test_dtype_that_nobody_knows(described, commands, folder):
    rewrite_header(
        folder / "model.safetensors", lambda header: header[QUERY].update(dtype="\x1b]0;owned\x07")
    )
    described(folder, "model.safetensors", QUERY)
    text = commands("inspect", folder).out
    assert "\x1b" not in text
    assert "\\x1b]0;owned\\x07" in text
    assert "\x1b" not in commands("inspect", folder, "--json").out


# The config -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 10_000]
)
def test_config_that_is_no_json(refused, folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


def test_no_config(refused, folder):
    (folder / "config.json").unlink()
    refused(folder, str(folder), "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "many"},
        {"hidden_size": -32},
        {"hidden_size": None},
        {"num_hidden_layers": 10**12},
        {"num_attention_heads": 0},
        {"vocab_size": 1.5},
        {"rope_theta": "x"},
        {"model_type": None},
        {"model_type": ["llama"]},
    ],
    ids=str,
)
def test_config_with_impossible_values(refused, folder, change):
    change_config(folder, **change)
    refused(folder, *list(change)[:1])


def test_unknown_family(described, folder):
    change_config(folder, model_type="llama9")
    report = described(folder, str(folder), "'llama9'", "qwen3", "nearest is 'llama'")
    assert report["family"] is None
    assert report["parameters"] > 0


def test_unknown_family_that_asks_for_code(described, folder):
    code = "raise SystemExit('executed')"
    (folder / "modeling_new.py").write_text(code)
    change_config(
        folder, model_type="newest", auto_map={"AutoModelForCausalLM": "modeling_new.NewModel"}
    )
    described(folder, str(folder), "'newest'", "auto_map", "never")


def test_code_beside_a_known_family_is_ignored(commands, folder):
    (folder / "modeling_new.py").write_text("raise SystemExit('executed')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_new.NewModel"})
    assert commands("run", folder, "Hello", "-n", "1").code == 0


def test_generation_config_that_makes_no_sense(commands, folder):
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    for command in (["run", folder, "Hello"], ["chat", folder]):
        assert_refused(commands(*command, stdin="Hello"), "generation_config.json", "temperature")


# The tokenizer and the template -----------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b'{"version": "1.0", "model": {"type": "BPE"}}', b"\xff" * 9],
)
def test_broken_tokenizer(refused, folder, content, monkeypatch):
    def never(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("firstlight.packing.load_weights", never)
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder, "tokenizer.json", "Download")


def test_broken_tokenizer_config(refused, folder):
    (folder / "tokenizer_config.json").write_bytes(b"{")
    refused(folder, "tokenizer_config.json")


def test_without_a_tokenizer(commands, folder):
    (folder / "tokenizer.json").unlink()
    for command in (["run", folder, "Hello"], ["chat", folder]):
        assert_refused(commands(*command, stdin="Hello"), str(folder), "tokenizer.json")
    # The model itself can be used, with token ids.
    report = json.loads(commands("inspect", folder, "--json").out)
    assert (report["runs"], report["tokenizer_size"]) == (True, None)
    assert "token ids" in commands("inspect", folder).out


ESCAPES = {
    "globals": "{{ messages.__class__.__base__.__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('touch escaped') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "change": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_template_that_tries_to_escape(commands, tmp_path, monkeypatch, name):
    model = write_chat_model(tmp_path / "model", template=ESCAPES[name] + TEMPLATE)
    monkeypatch.chdir(tmp_path)
    for command in (["run", model, "Hello"], ["chat", model]):
        done = commands(*command, stdin="Hello")
        # `format` yields text that gives nothing away: nothing to refuse.
        if done.code != 0:
            assert_refused(done, "tokenizer_config.json", "chat template")
        assert name == "format" or done.code == 2
        assert "root:" not in done.out + done.err
    assert not (tmp_path / "escaped").exists()
    # A prompt that needs no template can be continued all the same.
    assert commands("run", model, "Hello", "-n", "1", "--raw").code == 0


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}"
        "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    ],
    ids=["time", "memory"],
)
def test_template_that_never_ends(commands, tmp_path, template):
    model = write_chat_model(tmp_path / "model", template=template)
    assert_refused(commands("chat", model, stdin="Hello"), "tokenizer_config.json", "chat template")


# Other inputs -----------------------------------------------------------------------------


def test_prompt_longer_than_the_context(commands, folder):
    done = commands("run", folder, "word " * 200)
    assert_refused(done, "prompt", "tokens", "512")


def test_memory_is_foreseen(commands, folder, monkeypatch):
    monkeypatch.setattr("firstlight.loading.available_memory", lambda: 100_000)
    monkeypatch.setattr("firstlight.host.memory.available_memory", lambda: 100_000)
    for command in (["run", folder, "Hello"], ["chat", folder]):
        assert_refused(commands(*command, stdin="Hello"), str(folder), "memory", "int4")
    report = json.loads(commands("inspect", folder, "--json").out)
    assert report["runs"] is False
    assert "memory" in report["why"]


@pytest.mark.parametrize("command", ["run", "chat", "inspect"])
@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "model.gguf", "https://h.co/a/b"])
def test_model_that_does_not_exist(commands, monkeypatch, tmp_path, command, name):
    monkeypatch.chdir(tmp_path)
    assert_refused(commands(command, name, stdin="Hello"), name)


def true_process(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "firstlight", *words],
        input=b"Hello",
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", ["run", "chat", "inspect"])
def test_true_processes(sharded, command):
    (sharded / SHARD).write_bytes((sharded / SHARD).read_bytes()[:-1])
    done = true_process(command, str(sharded))
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("firstlight: error: ")
    assert SHARD in line


def test_true_process_where_nothing_can_be_imported_from_the_model(folder):
    """A module in the working directory that is the model's is not imported in place of ours."""
    for name in ("jinja2.py", "tokenizers.py", "template_worker.py", "modeling.py"):
        (folder / name).write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "firstlight", "run", ".", "Hello", "-n", "1"],
        capture_output=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert b"executed" not in done.stdout + done.stderr
