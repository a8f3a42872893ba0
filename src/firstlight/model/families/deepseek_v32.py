"""DeepSeek-V3.2 and V3.2-Exp (DeepSeek-AI 2025, arXiv:2512.02556): V3, whose attention sees the
positions that an indexer selects."""

from __future__ import annotations

from dataclasses import replace

from firstlight.model.attention_spec import IndexerSpec
from firstlight.model.families.config import shown
from firstlight.model.families.deepseek_v2 import deepseek
from firstlight.model.families.deepseek_v3 import routing
from firstlight.model.families.experts import ROUTER_KEPT
from firstlight.model.families.parts import Parts
from firstlight.model.part_specs import LayerNormSpec
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource

_MOST_HEADS = 1 << 16
# In DeepSeek's inference code as in transformers, whatever epsilon the config has for other norms.
_KEY_NORM_EPSILON = 1e-6


def spec(parts: Parts) -> ModelSpec:
    """V3 with an indexer in every layer."""
    config = parts.config
    if config.has("layer_types"):
        for name in config.texts("layer_types", parts.layers):
            if name != "indexed_attention":
                raise config.unsupported("layer_types", f"has the type {shown(name)}")
    if not config.has("q_lora_rank"):
        raise config.unsupported("q_lora_rank", "is missing, and the indexer's queries come of it")
    parts = parts.with_defaults(max_position_embeddings=163_840)
    return deepseek(
        "deepseek_v32", parts, routing, interleaved=True, correction=True, indexer=_indexer
    )


def _indexer(parts: Parts, layer: int) -> IndexerSpec:
    """Section 2.1. What turns is the halves of a head's first values, not its neighbours as in the
    attention: DeepSeek's inference code says so since November 2025, and transformers agrees."""
    config, hidden = parts.config, parts.hidden_size
    heads = config.integer("index_n_heads", most=_MOST_HEADS)
    size = config.integer("index_head_dim", most=_MOST_HEADS)
    if size < config.integer("qk_rope_head_dim"):
        raise config.error("index_head_dim", f"is {size}, less than the values that turn")
    norm = parts.tensor_name("index_key_norm", layer)
    weights = parts.linear("index_weights", heads, hidden, layer)
    return IndexerSpec(
        heads=heads,
        head_size=size,
        top_k=config.integer("index_topk"),
        query=parts.linear("index_query", heads * size, config.integer("q_lora_rank"), layer),
        key=parts.linear("index_key", size, hidden, layer),
        key_norm=LayerNormSpec(
            size,
            _KEY_NORM_EPSILON,
            TensorSource(f"{norm}.weight", (size,)),
            TensorSource(f"{norm}.bias", (size,)),
        ),
        # Like a router's: small, and what it decides is not.
        weights=replace(weights, weight=replace(weights.weight, kept=ROUTER_KEPT)),
    )
