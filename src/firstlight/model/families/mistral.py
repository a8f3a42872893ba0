"""Mistral 7B and its successors (Jiang et al. 2023, arXiv:2310.06825): Llama's blocks with a
sliding window in the first models, and with a head size of their own in later ones.

GGUF files of this family say that they are Llama's, and have no window.
"""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Every layer slides, unless the window is null."""
    parts = parts.with_defaults(
        max_position_embeddings=131_072, num_key_value_heads=8, sliding_window=4096
    )
    rope = rope_spec(parts)
    windows = parts.windows(lambda _: parts.config.has("sliding_window"))
    layers = (
        parts.layer(index, parts.attention(index, rope, window=window))
        for index, window in enumerate(windows)
    )
    return parts.model("mistral", tuple(layers))
