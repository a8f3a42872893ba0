"""Gemma 3, text (Gemma Team 2025, arXiv:2503.19786): five sliding layers to one full layer, each
kind with its own rotary base, norms before and after every block, and norms of query and key."""

from __future__ import annotations

from firstlight.model.families.gemma2 import gemma, score_scale, windows
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec

_LAYERS_OF_27B = 62

# Published multimodal checkpoints leave out whatever equals these.
_PUBLISHED_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def spec(parts: Parts) -> ModelSpec:
    """Gemma 3 from a config of model type gemma3_text."""
    if not parts.gguf:
        parts = parts.with_defaults(**_PUBLISHED_SIZES)
    elif not parts.config.has("sliding_window"):
        # In GGUF files no window means no sliding layers.
        parts = parts.with_defaults(sliding_window_pattern=1)
    parts = gemma(parts).with_defaults(
        max_position_embeddings=131_072,
        num_key_value_heads=4,
        sliding_window_pattern=6,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
    )
    config = parts.config
    if config.has("attn_logit_softcapping"):
        raise config.unsupported("attn_logit_softcapping")
    full = rope_spec(parts)
    sliding = rope_spec(parts, "sliding_attention", theta_key="rope_local_base_freq", scaled=False)
    scale = score_scale(parts, _LAYERS_OF_27B)
    activation = parts.activation("hidden_activation", "gelu_pytorch_tanh")
    bias = config.boolean("attention_bias", False)
    layers = (
        parts.layer(
            index,
            parts.attention(
                index,
                full if window is None else sliding,
                bias=bias,
                output_bias=bias,
                query_norm=parts.norm("query_norm", parts.head_size, index),
                key_norm=parts.norm("key_norm", parts.head_size, index),
                window=window,
                scale=scale,
            ),
            parts.feed_forward(index, activation=activation),
            after=True,
        )
        for index, window in enumerate(windows(parts))
    )
    return parts.model(
        "gemma3",
        tuple(layers),
        # Its linear scaling is counted in already.
        context_length=config.integer("max_position_embeddings"),
        embedding_scale=parts.hidden_size**0.5,
        logit_soft_cap=config.positive_or_none("final_logit_softcapping"),
    )
