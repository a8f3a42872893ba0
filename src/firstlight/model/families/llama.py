"""Llama 2, 3 and 3.x (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783), and whatever keeps to their layout: R1-Distill-Llama among it."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import LayerSpec, ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Norms before the blocks, grouped-query attention, SiLU-gated feed-forward."""
    # GGUF files hold this family's query and key rows reordered for neighbouring pairs.
    rope = rope_spec(parts, interleaved=parts.gguf)
    bias = parts.config.boolean("attention_bias", False)
    mlp_bias = parts.config.boolean("mlp_bias", False)

    def layer(index: int) -> LayerSpec:
        output = parts.linear(
            "attention_output",
            parts.hidden_size,
            parts.heads * parts.head_size,
            index,
            bias=bias and parts.has("attention_output", index, "bias"),
        )
        return LayerSpec(
            attention=parts.attention(index, rope, bias=bias, output=output),
            attention_residual=parts.residual("attention", index),
            feed_forward=parts.feed_forward(index, bias=mlp_bias),
            feed_forward_residual=parts.residual("feed_forward", index),
        )

    return parts.model("llama", tuple(layer(index) for index in range(parts.layers)))
