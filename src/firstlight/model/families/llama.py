"""Llama 2, 3 and 3.x (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783), and whatever keeps to their layout: R1-Distill-Llama among it."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Norms before the blocks, grouped-query attention, SiLU-gated feed-forward."""
    parts = parts.with_defaults(max_position_embeddings=2048)
    # GGUF files hold this family's query and key rows reordered for neighbouring pairs.
    rope = rope_spec(parts, interleaved=parts.gguf)
    bias = parts.config.boolean("attention_bias", False)
    mlp_bias = parts.config.boolean("mlp_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(index, rope, bias=bias, output_bias=bias),
            parts.feed_forward(index, bias=mlp_bias),
        )
        for index in range(parts.layers)
    )
    return parts.model("llama", tuple(layers))
