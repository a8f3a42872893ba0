"""Qwen3 with experts (Yang et al. 2025, arXiv:2505.09388): Qwen3's attention, and routed
experts alone."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.qwen2_moe import has_experts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Where windows are used, every layer slides."""
    parts = parts.with_defaults(max_position_embeddings=32_768)
    if parts.gguf:
        # Its files do not say that the weights of the chosen are renormalised, as all are.
        parts = parts.with_defaults(norm_topk_prob=True)
    else:
        parts = parts.with_defaults(num_key_value_heads=4, sliding_window=4096)
        parts = parts.with_alias("num_experts", "num_local_experts")
    config = parts.config
    rope = rope_spec(parts)
    bias = config.boolean("attention_bias", False)
    slides = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    experts = sizes(parts, "num_experts", "moe_intermediate_size")
    numbers = routing_numbers(
        parts, experts.count, renormalised=config.boolean("norm_topk_prob", False)
    )
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
            experts_spec(parts, index, experts, numbers) if has_experts(parts, index) else None,
        )
        for index, window in enumerate(parts.windows(lambda _: slides))
    )
    return parts.model("qwen3_moe", tuple(layers))
