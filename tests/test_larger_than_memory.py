"""A checkpoint twice the size of a limit on memory runs to its end, with the same tokens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.host.mapping import can_hold

pytestmark = pytest.mark.skipif(not can_hold(), reason="limits as here are Linux's")

HIDDEN, WIDTH, LAYERS, EXPERTS, VOCABULARY = 512, 2048, 4, 16, 512
LIMIT = 192 << 20
TOKENS = 5

# Takes the kind of limit, its bytes, the model, the device, the weights' format, the tokens wanted.
CHILD = """
import json, os, resource, sys, warnings
kind, limit, model, device, weights, count = sys.argv[1:]
limit = int(limit)
if kind == "data":
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
elif kind != "none":
    with open(kind, "w") as group:
        group.write(str(os.getpid()))
import firstlight
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    loaded = firstlight.load(
        model, device, weights or None, context_length=64, token_budget=64, tune=None
    )
parameters = {"max_tokens": int(count), "ignore_end": True, "temperature": 0.0}
tokens = loaded.generate(list(range(24)), **parameters).token_ids
held = loaded.engine.decoder.after_pass
print(json.dumps({
    "tokens": tokens,
    "said": [str(each.message) for each in said],
    "held": held.__self__.held_bytes if held else 0,
}))
"""


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, rows in (("q", HIDDEN), ("k", 128), ("v", 128), ("o", HIDDEN)):
            yield f"{name}.self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{name}.block_sparse_moe.gate.weight", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            of = f"{name}.block_sparse_moe.experts.{expert}"
            yield f"{of}.w1.weight", (WIDTH, HIDDEN)
            yield f"{of}.w3.weight", (WIDTH, HIDDEN)
            yield f"{of}.w2.weight", (HIDDEN, WIDTH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in bfloat16; values repeat, which nobody notices."""
    folder = tmp_path_factory.mktemp("large")
    config = {
        "model_type": "mixtral",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(1 << 21, np.float32) / 16
    drawn = (values.view(np.uint32) >> 16).astype(np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (_, shape) in enumerate(tensors()):
            part = np.roll(drawn, 977 * number)[: int(np.prod(shape))]
            file.write(part.tobytes())
    assert (folder / "model.safetensors").stat().st_size >= 2 * LIMIT
    return folder


def run(
    kind: str | Path, model: Path, device: str, cache: Path, weights: str = ""
) -> dict[str, Any]:
    words = [str(kind), str(LIMIT), str(model), device, weights, str(TOKENS)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        env={**os.environ, "FIRSTLIGHT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture
def group() -> Iterator[Callable[[int], Path]]:
    """Limits the memory of a new control group, and gives the file that a process writes its
    number to, to become a member."""
    memory = Path("/sys/fs/cgroup/memory")
    limit, members = "memory.limit_in_bytes", "tasks"
    if not (memory / limit).exists():
        memory = Path("/sys/fs/cgroup")
        limit, members = "memory.max", "cgroup.procs"
    directory = memory / f"firstlight-test-{os.getpid()}"

    def made(size: int) -> Path:
        try:
            directory.mkdir()
            (directory / limit).write_text(str(size))
        except OSError:
            pytest.skip("no control group can be limited here")
        return directory / members

    yield made
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def check(limited: dict[str, Any], free: dict[str, Any]) -> None:
    assert limited["tokens"] == free["tokens"] and len(free["tokens"]) == TOKENS
    (said,) = limited["said"]
    assert "memory" in said and "a token" in said
    assert limited["held"] > 0
    assert not free["said"] and not free["held"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def free(model: Path, cache: Path) -> dict[str, Any]:
    """The run without a limit, which also checks the kernels: that takes memory, once."""
    return run("none", model, "cpu", cache)


def test_with_a_limit_on_the_process(model: Path, free: dict[str, Any], cache: Path) -> None:
    check(run("data", model, "cpu", cache), free)


def test_in_a_control_group(
    model: Path, group: Callable[[int], Path], free: dict[str, Any], cache: Path
) -> None:
    check(run(group(LIMIT), model, "cpu", cache), free)


def test_weights_that_are_laid_out_anew_are_kept_on_disk(
    model: Path, group: Callable[[int], Path], tmp_path: Path
) -> None:
    """The weights in int8 are packed in a group that would hold neither form of them."""
    free = run("none", model, "cpu", tmp_path / "one", "int8")
    members = group(160 << 20)
    check(run(members, model, "cpu", tmp_path / "two", "int8"), free)
    (packed,) = (tmp_path / "two" / "packed").glob("*.packed")
    assert packed.stat().st_size > 160 << 20
    check(run(members, model, "cpu", tmp_path / "two", "int8"), free)


def test_what_cannot_be_kept_on_disk_is_refused(
    model: Path, group: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "packed").mkdir(parents=True)
    words = [str(group(160 << 20)), str(LIMIT), str(model), "cpu", "int8", "1"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        env={**os.environ, "FIRSTLIGHT_CACHE": str(tmp_path), "FIRSTLIGHT_CACHE_LIMIT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1
    assert "InsufficientMemoryError" in done.stderr and "cache limit" in done.stderr
