"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): Llama's blocks with norms of the whole query
and key, and experts in every layer."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """OLMoE; queries, keys and values are not clipped in any published model."""
    parts = parts.with_defaults(max_position_embeddings=4096, rms_norm_eps=1e-5)
    config = parts.config
    if config.has("clip_qkv"):
        raise config.unsupported("clip_qkv")
    rope = rope_spec(parts)
    bias = config.boolean("attention_bias", False)
    experts = sizes(parts, "num_experts", "intermediate_size")
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
                query_norm=parts.norm("query_norm", parts.query_width, index),
                key_norm=parts.norm("key_norm", parts.key_value_width, index),
            ),
            experts_spec(parts, index, experts, numbers),
        )
        for index in range(parts.layers)
    )
    return parts.model("olmoe", tuple(layers))
