"""OLMo 2 (OLMo Team 2025, arXiv:2501.00656): norms after the blocks only, and norms of the whole
query and key."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """OLMo 2. OLMo 3 shares its name in GGUF files and is told by its sliding window."""
    parts = parts.with_defaults(max_position_embeddings=2048, rms_norm_eps=1e-5)
    if parts.gguf and parts.config.has("sliding_window"):
        raise parts.config.unsupported("sliding_window", "makes this an OLMo 3")
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
                query_norm=parts.norm("query_norm", parts.query_width, index),
                key_norm=parts.norm("key_norm", parts.key_value_width, index),
            ),
            before=False,
            after=True,
        )
        for index in range(parts.layers)
    )
    return parts.model("olmo2", tuple(layers))
