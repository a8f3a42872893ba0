"""Checkpoints of which only the headers exist, to read configs of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers.core_model_loading import revert_weight_conversion

from firstlight.formats.base import Format, Weight
from firstlight.formats.registry import get_format
from tests.support.tiny_models import tiny_model


@dataclass(frozen=True)
class Header:
    """A tensor's header."""

    shape: tuple[int, ...]
    format: str = "f32"


@dataclass(frozen=True)
class ConfigFiles:
    """What a family reads of a checkpoint, from dictionaries. Every weight is ones."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Header] = field(default_factory=dict)
    kind: str = "safetensors"
    location: Path = Path("model")

    def weight(self, name: str) -> Weight:
        shape = self.tensors[name].shape
        data = np.ones(shape, np.float32).view(np.uint8).reshape(-1, 4 * shape[-1])
        return Weight(get_format("f32"), shape, data, name)

    def format_of(self, name: str) -> Format:
        return get_format(self.tensors[name].format)

    def rows(self, name: str, start: int, stop: int) -> Weight:
        return self.weight(name).row_slice(start, stop)

    def changed(self, **config: Any) -> ConfigFiles:
        """The same with other config values."""
        return replace(self, config={**self.config, **config})

    def without(self, *keys: str) -> ConfigFiles:
        """The same without some config keys."""
        kept = {key: value for key, value in self.config.items() if key not in keys}
        return replace(self, config=kept)


@cache
def tiny_config_files(name: str) -> ConfigFiles:
    """Config and headers of a tiny model, as its checkpoint has them."""
    model = tiny_model(name).build()
    # transformers stacks experts in memory, and takes them apart again as it writes them.
    saved = revert_weight_conversion(model, model.state_dict())
    tensors = {key: Header(tuple(value.shape)) for key, value in saved.items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return ConfigFiles(model.config.to_dict(), tensors)


def gguf_config_files(architecture: str, **changes: Any) -> ConfigFiles:
    """Metadata and headers of a tiny GGUF file; a double underscore in a key stands for a dot."""
    metadata: dict[str, Any] = {
        "block_count": 2,
        "embedding_length": 48,
        "feed_forward_length": 68,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "context_length": 512,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    config = {f"{architecture}.{key}": value for key, value in metadata.items()}
    tensors = {"token_embd.weight": Header((157, 48))}
    return ConfigFiles({"general.architecture": architecture, **config}, tensors, kind="gguf")
