"""Gemma 3, text (Gemma Team 2025, arXiv:2503.19786): five sliding layers to one full layer, each
kind with its own rotary base, norms before and after every block, and norms of query and key."""

from __future__ import annotations

from dataclasses import replace

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import LayerSpec, ModelSpec, ResidualSpec, RopeSpec

# The 27B model's scores are scaled by hidden_size / heads, not by the head size; GGUF files do
# not say so, and tell it by its number of layers.
_LAYERS_OF_27B = 62


def spec(parts: Parts) -> ModelSpec:
    """Gemma 3 from a config of model type gemma3_text."""
    # GGUF files hold norm weights as they are applied; published ones hold them less one.
    parts = replace(parts, norm_offset=0.0 if parts.gguf else 1.0)
    if not parts.gguf:
        parts = parts.rename(feed_forward_norm="pre_feedforward_layernorm")
    config = parts.config
    pattern = config.integer("sliding_window_pattern", 6)
    slides = parts.layer_types(lambda layer: (layer + 1) % pattern != 0)
    full = rope_spec(parts, "full_attention", theta=1_000_000.0)
    sliding = _sliding_rope(parts, full)
    window = config.integer("sliding_window", 4096)
    default_scale = parts.head_size
    if parts.gguf and parts.layers == _LAYERS_OF_27B:
        default_scale = parts.hidden_size // parts.heads
    scale = config.positive("query_pre_attn_scalar", default_scale) ** -0.5
    activation = parts.activation("hidden_activation", "gelu_pytorch_tanh")

    def residual(role: str, index: int) -> ResidualSpec:
        return ResidualSpec(
            parts.norm(f"{role}_norm", parts.hidden_size, index),
            parts.norm(f"{role}_post_norm", parts.hidden_size, index),
        )

    def layer(index: int) -> LayerSpec:
        return LayerSpec(
            attention=parts.attention(
                index,
                sliding if slides[index] else full,
                bias=config.boolean("attention_bias", False),
                query_norm=parts.norm("query_norm", parts.head_size, index),
                key_norm=parts.norm("key_norm", parts.head_size, index),
                window=window if slides[index] else None,
                scale=scale,
                soft_cap=config.positive_or_none("attn_logit_softcapping"),
            ),
            attention_residual=residual("attention", index),
            feed_forward=parts.feed_forward(index, activation=activation),
            feed_forward_residual=residual("feed_forward", index),
        )

    return parts.model(
        "gemma3",
        tuple(layer(index) for index in range(parts.layers)),
        embedding_scale=parts.hidden_size**0.5,
        logit_soft_cap=config.positive_or_none("final_logit_softcapping"),
    )


def _sliding_rope(parts: Parts, full: RopeSpec) -> RopeSpec:
    """Sliding layers have a base of their own and are never scaled."""
    theta = parts.config.positive("rope_local_base_freq", 10_000.0)
    if parts.config.section("rope_parameters") is not None:
        return rope_spec(parts, "sliding_attention", theta=theta)
    return replace(full, theta=theta, scaling=None)
