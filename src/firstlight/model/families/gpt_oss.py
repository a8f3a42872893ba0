"""gpt-oss (OpenAI 2025, arXiv:2508.10925): attention with sinks, every other layer sliding, and
experts with biases and a clamped gate, published in mxfp4."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.ops.gating import ClampedSwish

# What configs leave out, and GGUF files have no keys for.
_SLOPE, _LIMIT, _OFFSET = 1.702, 7.0, 1.0


def spec(parts: Parts) -> ModelSpec:
    """The first layer slides."""
    parts = parts.with_defaults(
        max_position_embeddings=131_072, sliding_window=128, head_dim=64, rms_norm_eps=1e-5
    )
    if parts.gguf:
        parts = parts.rename_whole(feed_forward_norm="blk.{layer}.post_attention_norm")
        parts = parts.with_scaling(truncate=False)
    else:
        parts = parts.rename_whole(router="model.layers.{layer}.mlp.router")
        parts = parts.with_defaults(num_key_value_heads=8, rope_theta=150_000.0)
    config = parts.config
    rope = rope_spec(parts)
    bias = config.boolean("attention_bias", True)
    gating = ClampedSwish(
        config.positive("swiglu_limit", _LIMIT), config.positive("swiglu_alpha", _SLOPE), _OFFSET
    )
    experts = sizes(
        parts, "num_local_experts", "moe_intermediate_size" if parts.gguf else "intermediate_size"
    )
    # The softmax of the chosen alone is that of all, renormalised.
    numbers = routing_numbers(parts, experts.count, renormalised=True)
    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                rope,
                bias=bias,
                output_bias=bias,
                window=window,
                sinks=TensorSource(parts.tensor_name("sinks", index), (parts.heads,)),
            ),
            experts_spec(
                parts, index, experts, numbers, gating=gating, router_bias=True, bias=True
            ),
        )
        for index, window in enumerate(parts.windows(lambda layer: layer % 2 == 0))
    )
    return parts.model("gpt_oss", tuple(layers))
