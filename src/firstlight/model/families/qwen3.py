"""Qwen3, dense (Yang et al. 2025, arXiv:2505.09388)."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.qwen2 import sliding_windows
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Qwen2 with norms of query and key, each head by itself, in place of the biases."""
    parts = parts.with_defaults(
        max_position_embeddings=32_768, num_key_value_heads=32, head_dim=128, sliding_window=4096
    )
    rope = rope_spec(parts)
    bias = parts.config.boolean("attention_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                rope,
                bias=bias,
                output_bias=bias,
                query_norm=parts.norm("query_norm", parts.head_size, index),
                key_norm=parts.norm("key_norm", parts.head_size, index),
                window=window,
            ),
        )
        for index, window in enumerate(sliding_windows(parts))
    )
    return parts.model("qwen3", tuple(layers))
