"""Conversions that are interrupted, and how much memory one needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.conversion import convert as conversion
from firstlight.conversion.convert import Report, convert_checkpoint
from firstlight.conversion.schemes import target_of
from firstlight.errors import FirstlightError
from firstlight.progress import no_progress
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import TinyModel

MODEL = TinyModel(
    "llama",
    "LlamaForCausalLM",
    {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
)
SHARD = 20_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(MODEL.build(), tmp_path_factory.mktemp("source") / "model")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    return folder


def _convert(source: Path, out: Path, weights: str = "int8", shard: int = SHARD) -> Report:
    checkpoint = open_checkpoint(source)
    return convert_checkpoint(
        checkpoint, out, target_of(weights), shard_bytes=shard, show=no_progress
    )


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("where", ["write_output", "write_small_files", "_finish"])
def test_the_same_command_goes_on_from_any_point(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _convert(source, tmp_path / "whole")
    expected = _contents(tmp_path / "whole")
    assert {"config.json", "tokenizer_config.json", "LICENSE"} < expected.keys()
    real = getattr(conversion, where)
    shards = sum(name.endswith(".safetensors") for name in expected)
    assert shards > 4
    for point in range(0, 21, 4) if where == "write_output" else (0,):
        out, calls, kept = tmp_path / f"out{point}", 0, 0

        def interrupted(*arguments: Any, point: int = point) -> Any:
            nonlocal calls
            calls += 1
            if calls == point + 1:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(conversion, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            _convert(source, out)
        monkeypatch.setattr(conversion, where, real)
        assert not out.exists()
        unfinished = tmp_path / f"out{point}.unfinished"
        found = _contents(unfinished)
        whole = {name for name in found if name.endswith(".safetensors")}
        assert all(found[name] == expected[name] for name in whole)
        assert not [name for name in found if name.endswith(".tmp")]
        stamps = {name: (unfinished / name).stat().st_mtime_ns for name in whole}
        report = _convert(source, out)
        kept = report.resumed
        assert kept == len(whole)
        assert _contents(out) == expected and not unfinished.exists()
        assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert kept > 0


def test_what_was_measured_before_an_interruption_is_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _convert(source, tmp_path / "whole")
    real = conversion.write_small_files

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "write_small_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _convert(source, tmp_path / "out")
    monkeypatch.setattr(conversion, "write_small_files", real)
    report = _convert(source, tmp_path / "out")
    assert report.resumed == report.shards
    assert (report.layers, report.relative) == (expected.layers, expected.relative)


def test_another_command_does_not_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _convert(source, out)
    for weights, shard in (("int4", SHARD), ("int8", 2 * SHARD)):
        with pytest.raises(FirstlightError, match=r"unfinished conversion of another.*Delete"):
            _convert(source, out, weights, shard)
    (tmp_path / "out.unfinished" / "conversion.json").write_text("{")
    with pytest.raises(FirstlightError, match="holds no conversion that could go on"):
        _convert(source, out)


def test_a_source_that_has_changed_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = write_checkpoint(MODEL.build(), tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _convert(copy, tmp_path / "out")
    shard = next(copy.glob("*.safetensors"))
    os.utime(shard, ns=(1, 1))
    with pytest.raises(FirstlightError, match="unfinished conversion of another"):
        _convert(copy, tmp_path / "out")


def test_a_disk_without_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1 << 26

    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(FirstlightError, match=r"more bytes, and 67,108,864 are free"):
        _convert(source, tmp_path / "out")


# A process of its own -------------------------------------------------------------------------

_HIDDEN, _WIDTH = 1024, 3072


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of at most 12 MiB in float32, 210 MiB together, in one file."""
    folder = tmp_path_factory.mktemp("large")
    hidden, layers = _HIDDEN, 4
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": hidden,
        "intermediate_size": _WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    generator = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": (512, hidden),
        "lm_head.weight": (512, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for role in "qkvo":
            tensors[f"{stem}.self_attn.{role}_proj.weight"] = (hidden, hidden)
        for role in ("gate", "up"):
            tensors[f"{stem}.mlp.{role}_proj.weight"] = (_WIDTH, hidden)
        tensors[f"{stem}.mlp.down_proj.weight"] = (hidden, _WIDTH)
        for role in ("input", "post_attention"):
            tensors[f"{stem}.{role}_layernorm.weight"] = (hidden,)
    block = generator.standard_normal(1 << 20, np.float32)
    values = {name: np.resize(block, shape) for name, shape in tensors.items()}
    save_file(values, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


_MEASURED = r"""
import json, re, sys
from pathlib import Path
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.conversion.convert import convert_checkpoint
from firstlight.conversion.schemes import target_of
import firstlight.formats.registry, firstlight.model.families.llama
def peak():
    # ru_maxrss would have the parent's too.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
convert_checkpoint(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), target_of(sys.argv[3]))
print(json.dumps({"before": before, "peak": peak()}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own measure")
@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_memory_is_one_matrix_and_a_buffer(large: Path, tmp_path: Path, weights: str) -> None:
    words = [sys.executable, "-c", _MEASURED, str(large), str(tmp_path / "out"), weights]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    measured = json.loads(result.stdout)
    size = (large / "model.safetensors").stat().st_size
    matrix = 4 * _WIDTH * _HIDDEN
    buffer = 40 << 20
    assert size > 3 * (matrix + buffer)
    assert measured["peak"] - measured["before"] < matrix + buffer


@pytest.mark.skipif(sys.platform == "win32", reason="the test ends a process by a signal")
def test_a_process_that_is_killed_leaves_what_was_whole(large: Path, tmp_path: Path) -> None:
    out, unfinished = tmp_path / "out", tmp_path / "out.unfinished"
    words = [
        *(sys.executable, "-m", "firstlight", "convert", str(large), str(out)),
        *("--weights", "fp8", "--shard-size", "4MiB", "--json"),
    ]
    finished: set[str] = set()
    killed = 0
    for wanted in (1, 3):
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            names = {path.name for path in unfinished.glob("model-*.safetensors")}
            if len(names) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        if not out.exists():
            finished = {path.name for path in unfinished.glob("model-*.safetensors")}
    assert killed
    if not out.exists():
        result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
        report = json.loads(result.stdout)
        assert 1 <= len(finished) - 1 <= report["resumed"] <= len(finished)
    names = sorted(path.name for path in out.iterdir())
    assert [name for name in names if name.startswith(".") or name == "conversion.json"] == []
    weight = open_checkpoint(out).weight("model.layers.3.mlp.down_proj.weight")
    assert weight.format.name == "f8_e4m3"
