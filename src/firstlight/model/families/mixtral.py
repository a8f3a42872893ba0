"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral's attention, and eight experts of which
each token goes to two. GGUF files call it a Llama with experts."""

from __future__ import annotations

from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Every layer slides where the config has a window, and has experts."""
    parts = parts.with_defaults(max_position_embeddings=131_072, rms_norm_eps=1e-5)
    if not parts.gguf:
        parts = parts.with_defaults(num_key_value_heads=8, rope_theta=1e6)
        parts = _renamed(parts)
    # GGUF files hold this family's query and key rows reordered for neighbouring pairs.
    rope = rope_spec(parts, interleaved=parts.gguf)
    windows = parts.windows(lambda _: parts.config.has("sliding_window"))
    experts = sizes(parts, "num_local_experts", "intermediate_size")
    numbers = routing_numbers(parts, experts.count, renormalised=True)
    layers = (
        parts.layer(
            index,
            parts.attention(index, rope, window=window),
            experts_spec(parts, index, experts, numbers),
        )
        for index, window in enumerate(windows)
    )
    return parts.model("mixtral", tuple(layers))


def _renamed(parts: Parts) -> Parts:
    """With the names that published files have, unless these are written by transformers 5."""
    stem = "model.layers.{layer}.block_sparse_moe"
    if parts.has("router", 0):
        return parts
    names = {"expert_gate": "w1", "expert_up": "w3", "expert_down": "w2"}
    experts = {role: f"{stem}.experts.{{expert}}.{name}" for role, name in names.items()}
    return parts.rename_whole(router=f"{stem}.gate", **experts)
