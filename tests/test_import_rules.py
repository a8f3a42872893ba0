"""Who may import whom (docs/architecture.md), and that a run loads no vendor's package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

import firstlight

SOURCE = Path(firstlight.__file__).parent

# What joins the others, and so nothing below imports.
JOINING = {
    "server", "replica", "cli", "generation", "language_model", "loading", "packing", "tuning",
    "held_weights",
    "conversion", "parallel",
}  # fmt: skip

# Part -> parts of firstlight that nothing in it imports, not even for its type hints.
FORBIDDEN = {
    "formats": {
        *JOINING, "model", "engine", "ops", "backends", "checkpoint", "verify", "packed",
    },
    "checkpoint": {*JOINING, "model", "engine", "ops", "backends", "verify", "packed"},
    "ops": {*JOINING, "model", "engine", "backends", "checkpoint", "verify", "packed"},
    "model": {*JOINING, "engine", "backends", "verify", "packed"},
    "engine": {*JOINING, "backends", "checkpoint", "verify", "packed"},
    "backends": {*JOINING, "model", "engine", "checkpoint", "packed"},
    "conversion": {
        *(JOINING - {"conversion"}), "engine", "ops", "backends", "verify", "packed",
    },
    "packed": {*JOINING, "model", "engine", "ops", "backends", "checkpoint", "verify"},
    "host": {
        *JOINING, "model", "engine", "ops", "backends", "checkpoint", "formats", "verify", "packed",
    },
    "replica": {"server", "verify", "cli"},
    "server": {
        *(JOINING - {"server", "replica"}),
        "model", "engine", "ops", "backends", "formats", "verify", "packed",
    },
}  # fmt: skip

# Vendor's or test oracle's package -> the only folder that may import it.
VENDORS = {
    "torch": "backends/torch",
    "triton": "backends/torch",
    "wgpu": "backends/webgpu",
    "jax": None,
    "transformers": None,
    "gguf": None,
    "safetensors": None,
}
BASE_INSTALL = {
    "numpy", "tokenizers", "sentencepiece", "jinja2", "psutil", "rich", "prompt_toolkit",
    "huggingface_hub", "platformdirs", "httpx2", "msgspec", "starlette", "uvicorn", "h11",
    "prometheus_client", "zmq",
}  # fmt: skip


def imports_of(code: str, package: str) -> Iterator[str]:
    """Every module that the code of a module in `package` imports, wherever in it; for
    `from a import b` both "a" and "a.b", since b may be a module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in _IMPORT_FUNCTIONS
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


_IMPORT_FUNCTIONS = {"import_module", "__import__"}


def package_of(path: Path) -> str:
    return ".".join(("firstlight", *path.relative_to(SOURCE).parent.parts))


def all_imports() -> list[tuple[str, str]]:
    """(file below src/firstlight, module that it imports)."""
    return [
        (path.relative_to(SOURCE).as_posix(), module)
        for path in sorted(SOURCE.rglob("*.py"))
        for module in imports_of(path.read_text(encoding="utf-8"), package_of(path))
    ]


IMPORTS = all_imports()


def test_imports_are_found_wherever_they_stand() -> None:
    code = """
import numpy as np, torch.nn
from firstlight.backends import base
from . import decoder
from .attention import grouped_query
from ..engine import pages
if TYPE_CHECKING:
    from firstlight import server
def late():
    import jax
    import_module("wgpu")
    importlib.import_module("a.b")
"""
    assert set(imports_of(code, "firstlight.model")) == {
        "numpy",
        "torch.nn",
        "firstlight.backends",
        "firstlight.backends.base",
        "firstlight.model",
        "firstlight.model.decoder",
        "firstlight.model.attention",
        "firstlight.model.attention.grouped_query",
        "firstlight.engine",
        "firstlight.engine.pages",
        "firstlight",
        "firstlight.server",
        "jax",
        "wgpu",
        "a.b",
    }


def test_there_is_something_to_look_at() -> None:
    parts = {file.partition("/")[0] for file, _ in IMPORTS}
    assert parts >= FORBIDDEN.keys()
    assert ("model/decoder.py", "firstlight.ops") in IMPORTS


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_see_only_what_they_may(part: str) -> None:
    wrong = [
        f"{file} imports {module}"
        for file, module in IMPORTS
        if file.startswith(f"{part}/")
        and module.startswith("firstlight.")
        and module.split(".")[1] in FORBIDDEN[part]
    ]
    assert wrong == []


def test_the_server_sees_replicas_through_their_messages_only() -> None:
    seen = {
        module
        for file, module in IMPORTS
        if file.startswith("server/") and module.startswith("firstlight.replica")
    }
    messages = "firstlight.replica.messages"
    assert messages in seen
    assert all(module == messages or module.startswith(f"{messages}.") for module in seen)


def test_messages_need_nothing_of_firstlight() -> None:
    assert not [
        module
        for file, module in IMPORTS
        if file == "replica/messages.py" and module.startswith("firstlight")
    ]


def test_vendors_packages_stay_in_their_backends() -> None:
    wrong = []
    for file, module in IMPORTS:
        package = module.partition(".")[0]
        if package in VENDORS:
            folder = VENDORS[package]
            if folder is None or not file.startswith(f"{folder}/"):
                wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_all_else_is_in_the_base_install() -> None:
    known = BASE_INSTALL | sys.stdlib_module_names | VENDORS.keys() | {"firstlight"}
    others = {module.partition(".")[0] for _, module in IMPORTS} - known
    assert others == set()


# What a run really loads ----------------------------------------------------------------


def write_tiny_llama(folder: Path) -> None:
    """A llama checkpoint of two layers with a tokenizer of single bytes."""
    hidden, heads, width, vocabulary = 16, 2, 24, 256
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(2):
        name = f"model.layers.{layer}"
        for projection in "qkvo":
            shapes[f"{name}.self_attn.{projection}_proj.weight"] = (hidden, hidden)
        shapes[f"{name}.mlp.gate_proj.weight"] = (width, hidden)
        shapes[f"{name}.mlp.up_proj.weight"] = (width, hidden)
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, width)
        shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
    generator = np.random.default_rng(0)
    tensors = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary_of = {character: index for index, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary_of, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


_RUN = """
import json, sys
from firstlight.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_a_run_loads_no_vendors_package(tmp_path: Path, device: str) -> None:
    write_tiny_llama(tmp_path)
    words = ["run", str(tmp_path), "hello", "-n", "4", "--device", device, "--json"]
    result = subprocess.run(
        [sys.executable, "-c", _RUN, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent), "HF_HUB_OFFLINE": "1"},
    )
    report = json.loads(result.stderr.splitlines()[-1])
    assert report["code"] == 0, result.stderr
    answer = json.loads(result.stdout)
    assert len(answer["token_ids"]) == 4  # a model was really run
    assert len(answer["prompt_token_ids"]) == 5
    loaded = {module.partition(".")[0] for module in report["modules"]}
    assert "numpy" in loaded
    assert loaded.isdisjoint(VENDORS)
    # Nor what this run has no use for: each costs part of the time until the first word.
    assert loaded.isdisjoint({"prompt_toolkit", "huggingface_hub", "rich", "sentencepiece"})
    assert loaded.isdisjoint({"starlette", "uvicorn", "h11", "msgspec", "prometheus_client"})
