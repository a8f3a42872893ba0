"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671), dense; R1-Distill-Qwen is one of them."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Llama's blocks with biases on query, key and value."""
    parts = parts.with_defaults(
        max_position_embeddings=32_768, num_key_value_heads=32, sliding_window=4096
    )
    rope = rope_spec(parts)
    layers = (
        parts.layer(index, parts.attention(index, rope, bias=True, window=window))
        for index, window in enumerate(sliding_windows(parts))
    )
    return parts.model("qwen2", tuple(layers))


def sliding_windows(parts: Parts) -> tuple[int | None, ...]:
    """A window in the layers from `max_window_layers` on, where `use_sliding_window` says so."""
    config = parts.config
    first = config.integer("max_window_layers", 28, least=0)
    slides = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    windows = parts.windows(lambda layer: slides and layer >= first)
    if not slides and any(windows):
        raise config.error("layer_types", "has sliding layers, which 'use_sliding_window' forbids")
    return windows
