"""DeepSeek-V3, V3.1, R1 and R1-Zero (DeepSeek-AI 2024, arXiv:2412.19437), and Kimi K2 (Moonshot AI
2025, arXiv:2507.20534), which keeps to their layout."""

from __future__ import annotations

from firstlight.model.families.deepseek_v2 import deepseek
from firstlight.model.families.parts import Parts
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """V2's latent attention; the experts are chosen otherwise."""
    parts = parts.with_defaults(max_position_embeddings=4096)
    return deepseek("deepseek_v3", parts, interleaved=parts.config.boolean("rope_interleave", True))
