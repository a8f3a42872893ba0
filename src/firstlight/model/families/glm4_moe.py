"""GLM-4.5 and its successors (GLM-4.5 Team 2025, arXiv:2508.06471): dense layers first, then
experts routed as DeepSeek-V3's are. The layer that predicts a second token is left out."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Half of each head turns; sigmoid scores, corrected for the choice."""
    parts = parts.with_defaults(max_position_embeddings=131_072, rms_norm_eps=1e-5)
    if parts.gguf:
        # Its files call the norm before the experts what it is in the model: the one after
        # attention. Their layers count those that predict further tokens.
        parts = parts.rename_whole(feed_forward_norm="blk.{layer}.post_attention_norm")
        ahead = parts.config.integer("num_nextn_predict_layers", 0, least=0)
        if ahead >= parts.layers:
            raise parts.config.error("num_nextn_predict_layers", f"is {ahead} of all layers")
        parts = parts.with_values(num_hidden_layers=parts.layers - ahead)
    else:
        parts = parts.with_defaults(partial_rotary_factor=0.5)
    config = parts.config
    rope = rope_spec(parts, partial=True)
    bias = config.boolean("attention_bias", False)
    normed = parts.has("query_norm", 0) if parts.gguf else config.boolean("use_qk_norm", False)
    dense = config.integer("first_k_dense_replace", 1, least=0)
    experts = sizes(parts, "n_routed_experts", "moe_intermediate_size")
    numbers = routing_numbers(
        parts,
        experts.count,
        score="sigmoid",
        renormalised=config.boolean("norm_topk_prob", True),
        scale=config.positive("routed_scaling_factor", 1.0),
        group_score="two_largest",
        grouped=True,
    )
    shared = config.integer("n_shared_experts", 1, least=0) * experts.width

    def feed_forward(index: int) -> ExpertsSpec | None:
        if index < dense:
            return None
        return experts_spec(parts, index, experts, numbers, correction=True, shared_width=shared)

    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                rope,
                bias=bias,
                query_norm=parts.norm("query_norm", parts.head_size, index) if normed else None,
                key_norm=parts.norm("key_norm", parts.head_size, index) if normed else None,
            ),
            feed_forward(index),
        )
        for index in range(parts.layers)
    )
    return parts.model("glm4_moe", tuple(layers))
