"""Repositories for a hub of our own, and what a download leaves on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.hub_server import Repository

ID = "maker/model"


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


WEIGHTS = content(300_000)


def sharded() -> Repository:
    """A repository as they are: the model, and much that firstlight does not need."""
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    wanted = {
        "config.json": b'{"config": 1}',
        "generation_config.json": b'{"generation": 1}',
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"tokenizer": 1}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "README.md": b"# A model",
        "LICENSE.txt": b"Do as you like",
        "model-00001.safetensors": WEIGHTS,
        "model-00002.safetensors": content(100_000, 1),
    }
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "original/consolidated.00.pth": b"again",
        "onnx/model.onnx": b"again",
        "model.Q4.gguf": b"again",
        "training_args.bin": b"pickle",
        "modeling_custom.py": b"raise SystemExit",
        ".gitattributes": b"",
    }
    large = {name for name in wanted if name.endswith(".safetensors")} | {"tokenizer.json"}
    return Repository({**unwanted, **wanted}, large=large)


WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "README.md",
    "LICENSE.txt",
    "model-00001.safetensors",
    "model-00002.safetensors",
}


def held(snapshot: Path) -> dict[str, bytes]:
    return {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }


def leftovers(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.name.endswith((".incomplete", ".tmp"))]


def gguf_repository() -> Repository:
    names = ["m-Q4.gguf", "m-Q8.gguf", "mmproj-m.gguf", "big/m-00001-of-00002.gguf"]
    names.append("big/m-00002-of-00002.gguf")
    files = {name: content(1000, seed) for seed, name in enumerate(names)}
    return Repository({**files, "README.md": b"#", "config.json": b"{}"}, large=set(names))
