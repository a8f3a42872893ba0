"""config.json, and whether it asks for code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstlight.checkpoint.deepseek_config import in_published_words
from firstlight.checkpoint.files import exists
from firstlight.checkpoint.json_file import read_json_object
from firstlight.errors import CheckpointError


def read_config(folder: Path) -> dict[str, Any]:
    """The object in `folder`/config.json, its keys as they are published (`deepseek_config`).

    Raises:
        CheckpointError: it is missing, over 16 MiB, or not the JSON that `read_json_object` takes.
    """
    path = folder / "config.json"
    if not exists(path):
        raise CheckpointError(
            folder,
            "has weights but no config.json, which says what model they belong to",
            "Download config.json from the model's repository into that folder",
        )
    config = in_published_words(read_json_object(path))
    return _with_modelopt(config, folder / "hf_quant_config.json")


def _with_modelopt(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """With what ModelOpt's older checkpoints say in a file of its own, in its newer words."""
    if config.get("quantization_config") is not None or not exists(path):
        return config
    declared = read_json_object(path).get("quantization")
    if not isinstance(declared, Mapping):
        return config
    return {**config, "quantization_config": {"quant_method": "modelopt", **declared}}


def asks_for_code(config: Mapping[str, Any]) -> str | None:
    """The Python file in the repository that a config asks to run, or None.

    Such configs carry `auto_map`, from transformers' class names to "module.Class" or
    "organisation/repository--module.Class". firstlight never runs that code. The key alone is no
    reason to refuse a model: families that firstlight knows carry it too, from the days before
    transformers knew them. It explains why an unknown family cannot be run.
    """
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, Mapping):
        return None
    references: dict[str, str] = {}
    for name, target in auto_map.items():
        for reference in target if isinstance(target, list) else [target]:
            if isinstance(reference, str) and "." in reference:
                references.setdefault(name, reference)
    if not references:
        return None
    preferred = ("AutoModelForCausalLM", "AutoModel", "AutoConfig")
    name = next((name for name in preferred if name in references), next(iter(references)))
    repository, _, target = references[name].rpartition("--")
    module = target.rpartition(".")[0].replace(".", "/") + ".py"
    return f"{repository}/{module}" if repository else module
