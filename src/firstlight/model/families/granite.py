"""Granite 3 (IBM 2024, Granite 3.0 Language Models): Llama's blocks with multipliers on embedding,
scores, residuals and logits, after maximal update parametrisation (Yang et al. 2022,
arXiv:2203.03466)."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Granite, dense."""
    parts = parts.with_defaults(max_position_embeddings=2048)
    config = parts.config
    if not config.boolean("rope_finetuned", True):
        raise config.unsupported("rope_finetuned", "is false: the model has no rotary embedding")
    # GGUF files hold query and key rows reordered for neighbouring pairs; without a scale of the
    # scores they mean the usual one, where a config means one.
    rope = rope_spec(parts, interleaved=parts.gguf)
    scale = config.positive("attention_multiplier", parts.head_size**-0.5 if parts.gguf else 1.0)
    residual_scale = config.positive("residual_multiplier", 1.0)
    bias = config.boolean("attention_bias", False)
    mlp_bias = config.boolean("mlp_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(index, rope, bias=bias, output_bias=bias, scale=scale),
            parts.feed_forward(index, bias=mlp_bias),
            scale=residual_scale,
        )
        for index in range(parts.layers)
    )
    return parts.model(
        "granite",
        tuple(layers),
        embedding_scale=config.positive("embedding_multiplier", 1.0),
        logit_scale=1.0 / config.positive("logits_scaling", 1.0),
    )
