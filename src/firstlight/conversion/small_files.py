"""What a converted checkpoint has beside its tensors: config, tokenizer, template, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.gguf_metadata import TokenizerMetadata
from firstlight.checkpoint.hub_selection import INDEX_NAME, description_files
from firstlight.checkpoint.json_file import read_json_object
from firstlight.conversion.gguf_tokenizer_files import write_tokenizer
from firstlight.conversion.outputs import AnyOutput, left_out
from firstlight.conversion.schemes import Plain, Target
from firstlight.errors import UnsupportedModelError
from firstlight.model.families.registry import config_as_published, make_spec

_LONG_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_WRITTEN = ("config.json", "hf_quant_config.json", INDEX_NAME)


def check_small_files(checkpoint: Checkpoint) -> None:
    """UnsupportedModelError where config and tokenizer cannot be written as readers want them."""
    if checkpoint.kind == "gguf" and _config_of_gguf(checkpoint) is None:
        raise UnsupportedModelError(
            checkpoint.location,
            "is a GGUF file of a kind that firstlight does not write as a folder of safetensors",
            "Convert the model as its publisher has it on the hub; a GGUF file runs as it is",
        )


def _config_of_gguf(checkpoint: Checkpoint) -> dict[str, Any] | None:
    found = config_as_published(checkpoint, make_spec(checkpoint))
    if found is None:
        return None
    metadata = TokenizerMetadata(checkpoint.config, checkpoint.files[0])
    named = metadata.named_ids if "tokenizer.ggml.tokens" in checkpoint.config else {}
    ids = {f"{name}_id": named.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    return {**found.values, **ids, "dtype": "bfloat16"}


def model_dtype(checkpoint: Checkpoint) -> str:
    """The type that readers load the model in, as safetensors call it."""
    if checkpoint.kind == "gguf":
        return "BF16"
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
    if checkpoint.kind == "gguf":
        source = _config_of_gguf(checkpoint)
        assert source is not None
        write_tokenizer(checkpoint, folder)
        _write_generation(checkpoint, folder)
    else:
        source = read_json_object(checkpoint.location / "config.json")
        _copy_descriptions(checkpoint.location, folder)
    experts = any(".experts." in output.name for output in outputs)
    declared = target.quantization_config(left_out(outputs, target), experts)
    config = _config(source, target, declared)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _copy_descriptions(source: Path, folder: Path) -> None:
    names = [path.name for path in source.iterdir() if path.is_file()]
    for name in description_files(names):
        if name not in _WRITTEN:
            shutil.copyfile(source / name, folder / name)


def _write_generation(checkpoint: Checkpoint, folder: Path) -> None:
    """The publisher's defaults, as far as the file has them."""
    said = checkpoint.generation
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values: dict[str, Any] = {name: getattr(said, name) for name in names}
    values["eos_token_id"] = list(said.stop_token_ids) or None
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n")


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
