"""What loading holds: the model's bytes as they are kept, and at most a tenth more."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as Linux counts memory")

LAYERS, VOCABULARY = 6, 2048
TENTH = 0.1
# Of a small model first, so that what any model needs is there: modules, threads, checked kernels.
# Then says so, waits, and loads the large one.
CHILD = """
import sys
import firstlight
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.formats.registry import conversion_target
from firstlight.model.weights import weight_bytes
small, large, weights = sys.argv[1:]
options = {"context_length": 64, "sequences": 1, "token_budget": 64, "cache": False, "tune": None}
firstlight.load(small, "cpu", weights or None, **options).generate([1, 2, 3], max_tokens=2)
print("ready", flush=True)
sys.stdin.readline()
model = firstlight.load(large, "cpu", weights or None, **options)
target, backend = conversion_target(weights or None), model.engine.decoder.ops
print(weight_bytes(model.spec, open_checkpoint(large), target, backend), flush=True)
sys.stdin.readline()
"""


def _tensors(hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = 4 * hidden
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    yield "lm_head.weight", (VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, rows in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
            yield f"{name}.self_attn.{part}_proj.weight", (rows, hidden)
        yield f"{name}.mlp.gate_proj.weight", (width, hidden)
        yield f"{name}.mlp.up_proj.weight", (width, hidden)
        yield f"{name}.mlp.down_proj.weight", (hidden, width)
        yield f"{name}.input_layernorm.weight", (hidden,)
        yield f"{name}.post_attention_layernorm.weight", (hidden,)


def _write(folder: Path, hidden: int) -> Path:
    """A llama in bfloat16; its values repeat, which nobody notices."""
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in _tensors(hidden):
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    count = max(4 * hidden, VOCABULARY) * hidden
    values = np.random.default_rng(0).standard_normal(count, np.float32) / 32
    drawn = (values.view(np.uint32) >> 16).astype(np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in _tensors(hidden):
            file.write(drawn[: int(np.prod(shape))].tobytes())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that is hardly there, and one of 195 MB."""
    root = tmp_path_factory.mktemp("models")
    return _write(root / "small", 64), _write(root / "large", 1024)


def _private_bytes(process: subprocess.Popen[str]) -> int:
    """Of what a process holds now, all that is not a file's."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", status, re.MULTILINE)
    assert len(found) == 2
    return sum(1024 * int(each) for each in found)


@pytest.mark.parametrize("weights", ["", "int8"])
def test_loading_holds_the_model_and_a_tenth_more(folders: tuple[Path, Path], weights: str) -> None:
    small, large = folders
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(small), str(large), weights],
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        before = most = _private_bytes(process)
        process.stdin.write("\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 5e-4)[0]:
            most = max(most, _private_bytes(process))
        kept = int(process.stdout.readline())
    assert most - before < (1 + TENTH) * kept
