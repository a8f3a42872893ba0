"""SmolLM3 (Hugging Face 2025, https://huggingface.co/blog/smollm3): Llama's blocks, with every
fourth layer left without position embedding (Yang et al. 2025, arXiv:2501.18795)."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """SmolLM3; where windows are used, it is the layers without rotation that slide."""
    parts = parts.with_defaults(
        max_position_embeddings=32_768,
        num_key_value_heads=4,
        rope_theta=2_000_000.0,
        tie_word_embeddings=True,
    )
    config = parts.config
    # GGUF files hold query and key rows reordered for neighbouring pairs.
    rope = rope_spec(parts, interleaved=parts.gguf)
    turned = _turned_layers(parts)
    slides = config.boolean("use_sliding_window", False) and config.has("sliding_window")
    windows = parts.windows(lambda layer: slides and not turned[layer])
    if not slides and any(windows):
        raise config.error("layer_types", "has sliding layers, which 'use_sliding_window' forbids")
    bias = config.boolean("attention_bias", False)
    mlp_bias = config.boolean("mlp_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                rope if turned[index] else None,
                bias=bias,
                output_bias=bias,
                window=windows[index],
            ),
            parts.feed_forward(index, bias=mlp_bias),
        )
        for index in range(parts.layers)
    )
    return parts.model("smollm3", tuple(layers))


def _turned_layers(parts: Parts) -> tuple[bool, ...]:
    """For each layer whether it has rotary embedding: a one in `no_rope_layers`, despite the name.

    GGUF files do not say, and take the default.
    """
    if parts.config.has("no_rope_layers"):
        return parts.config.switches("no_rope_layers", parts.layers)
    interval = parts.config.integer("no_rope_layer_interval", 4)
    return tuple((layer + 1) % interval != 0 for layer in range(parts.layers))
