"""Qwen1.5-MoE and Qwen2 with experts (Yang et al. 2024, arXiv:2407.10671, section 2.2.2): Qwen2's
attention, routed experts and a shared one with a weight of its own."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Experts in every `decoder_sparse_step`th layer but for `mlp_only_layers`."""
    parts = parts.with_defaults(max_position_embeddings=32_768)
    if not parts.gguf:
        parts = parts.with_defaults(num_key_value_heads=16, sliding_window=4096)
        parts = parts.rename_whole(
            shared_gate="model.layers.{layer}.mlp.shared_expert.gate_proj",
            shared_up="model.layers.{layer}.mlp.shared_expert.up_proj",
            shared_down="model.layers.{layer}.mlp.shared_expert.down_proj",
        )
    config = parts.config
    rope = rope_spec(parts)
    windows = _windows(parts)
    experts = sizes(parts, "num_experts", "moe_intermediate_size")
    numbers = routing_numbers(
        parts, experts.count, renormalised=config.boolean("norm_topk_prob", False)
    )
    shared = config.integer("shared_expert_intermediate_size")

    def feed_forward(index: int) -> ExpertsSpec | None:
        if not has_experts(parts, index):
            return None
        return experts_spec(parts, index, experts, numbers, shared_width=shared, shared_weight=True)

    bias = config.boolean("qkv_bias", True)
    layers = (
        parts.layer(
            index,
            parts.attention(index, rope, bias=bias, window=window),
            feed_forward(index),
        )
        for index, window in enumerate(windows)
    )
    return parts.model("qwen2_moe", tuple(layers))


def has_experts(parts: Parts, layer: int) -> bool:
    """Whether a layer has experts; the others are dense."""
    step = parts.config.integer("decoder_sparse_step", 1)
    return layer not in parts.config.indices("mlp_only_layers") and (layer + 1) % step == 0


def _windows(parts: Parts) -> tuple[int | None, ...]:
    """As Qwen2's, except that it is the layers before `max_window_layers` that slide, in turn."""
    config = parts.config
    slides = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    last = config.integer("max_window_layers", 28, least=0)
    windows = parts.windows(lambda layer: slides and layer % 2 == 0 and layer < last)
    if not slides and any(windows):
        raise config.error("layer_types", "has sliding layers, which 'use_sliding_window' forbids")
    return windows
