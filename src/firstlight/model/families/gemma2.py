"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): sliding and full layers in turn, soft caps on scores
and logits, norms before and after every block."""

from __future__ import annotations

import math
from dataclasses import replace

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec

# The 27B model's scores are scaled by hidden_size / heads, not by the head size; GGUF files do
# not say so, and tell it by its number of layers.
_LAYERS_OF_27B = 46


def spec(parts: Parts) -> ModelSpec:
    """Gemma 2; the first layer slides."""
    parts = gemma(parts).with_defaults(
        max_position_embeddings=8192,
        num_key_value_heads=4,
        sliding_window_pattern=2,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    config = parts.config
    rope = rope_spec(parts)
    scale = score_scale(parts, _LAYERS_OF_27B)
    activation = parts.activation("hidden_activation", "gelu_pytorch_tanh")
    bias = config.boolean("attention_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                rope,
                bias=bias,
                output_bias=bias,
                window=window,
                scale=scale,
                soft_cap=config.positive_or_none("attn_logit_softcapping"),
            ),
            parts.feed_forward(index, activation=activation),
            after=True,
        )
        for index, window in enumerate(windows(parts))
    )
    return parts.model(
        "gemma2",
        tuple(layers),
        embedding_scale=parts.hidden_size**0.5,
        logit_soft_cap=config.positive_or_none("final_logit_softcapping"),
    )


def gemma(parts: Parts) -> Parts:
    """What Gemma 2 and 3 have in common beside their blocks."""
    if parts.config.boolean("use_bidirectional_attention", False):
        raise parts.config.unsupported("use_bidirectional_attention")
    if not parts.gguf:
        # Published files hold norm weights less one; GGUF files hold them as they are applied.
        parts = replace(parts, norm_offset=1.0)
        parts = parts.rename(feed_forward_norm="pre_feedforward_layernorm")
        parts = parts.with_defaults(head_dim=256, query_pre_attn_scalar=256)
    return parts.with_defaults(sliding_window=4096, tie_word_embeddings=True)


def score_scale(parts: Parts, layers_of_27b: int) -> float:
    """Factor of the scores: the root of one over `query_pre_attn_scalar`."""
    scalar = parts.head_size
    if parts.layers == layers_of_27b:
        scalar = parts.hidden_size // parts.heads
    return 1 / math.sqrt(parts.config.positive("query_pre_attn_scalar", scalar))


def windows(parts: Parts) -> tuple[int | None, ...]:
    """Every layer slides but each `sliding_window_pattern`th."""
    pattern = parts.config.integer("sliding_window_pattern")
    return parts.windows(lambda layer: (layer + 1) % pattern != 0)
