"""DeepSeek-V3, V3.1, R1 and R1-Zero (DeepSeek-AI 2024, arXiv:2412.19437), and Kimi K2 (Moonshot AI
2025, arXiv:2507.20534), which keeps to their layout."""

from __future__ import annotations

from firstlight.model.families.deepseek_v2 import deepseek
from firstlight.model.families.experts import routing_numbers
from firstlight.model.families.parts import Parts
from firstlight.model.spec import ModelSpec
from firstlight.ops.routing import Routing


def spec(parts: Parts) -> ModelSpec:
    """V2's latent attention; experts by sigmoid scores, corrected for the choice."""
    parts = parts.with_defaults(max_position_embeddings=4096)
    interleaved = parts.config.boolean("rope_interleave", True)
    return deepseek("deepseek_v3", parts, routing, interleaved=interleaved, correction=True)


def routing(parts: Parts, count: int) -> Routing:
    """Section 2.1.2, equations 12 to 16; a group counts by its two best experts."""
    config = parts.config
    if config.text("topk_method", "noaux_tc") != "noaux_tc":
        raise config.unsupported("topk_method")
    several = config.integer("num_experts_per_tok", most=count) > 1
    return routing_numbers(
        parts,
        count,
        score="sigmoid",
        renormalised=config.boolean("norm_topk_prob", True) and several,
        scale=config.positive("routed_scaling_factor", 1.0),
        group_score="two_largest",
        grouped=True,
    )
