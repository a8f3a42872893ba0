"""What a converted checkpoint has beside its tensors: config, tokenizer, template, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.hub_selection import INDEX_NAME, description_files
from firstlight.checkpoint.json_file import read_json_object
from firstlight.conversion.outputs import AnyOutput, left_out
from firstlight.conversion.schemes import Plain, Target
from firstlight.errors import UnsupportedModelError

_LONG_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_WRITTEN = ("config.json", "hf_quant_config.json", INDEX_NAME)


def check_small_files(checkpoint: Checkpoint) -> None:
    """UnsupportedModelError where config and tokenizer cannot be written as readers want them."""
    if checkpoint.kind == "gguf":
        raise UnsupportedModelError(
            checkpoint.location,
            "is a GGUF file, whose tokenizer and config firstlight does not write as folders of "
            "safetensors have them",
            "Convert the model as its publisher has it on the hub; a GGUF file runs as it is",
        )


def model_dtype(checkpoint: Checkpoint) -> str:
    """The type that readers load the model in, as safetensors call it."""
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            for short, long in _LONG_NAMES.items():
                if config.get(key) == long:
                    return short.upper()
    return "F32"


def write_small_files(
    checkpoint: Checkpoint, folder: Path, outputs: tuple[AnyOutput, ...], target: Target
) -> None:
    """Write config.json, and copy what describes the model otherwise."""
    source = checkpoint.location
    names = [path.name for path in source.iterdir() if path.is_file()]
    for name in description_files(names):
        if name not in _WRITTEN:
            shutil.copyfile(source / name, folder / name)
    experts = any(".experts." in output.name for output in outputs)
    declared = target.quantization_config(left_out(outputs, target), experts)
    config = _config(read_json_object(source / "config.json"), target, declared)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config(
    config: dict[str, Any], target: Target, declared: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The source's, with what is said of types and quantisation replaced."""
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("quantization_config", "compression_config")
    }
    if isinstance(target.scheme, Plain):
        name = _LONG_NAMES[target.scheme.name]
        kept |= {key: name for key in ("dtype", "torch_dtype") if key in kept}
    return kept if declared is None else {**kept, "quantization_config": dict(declared)}
