"""DeepSeek-V4's tensor names by role, in the three layouts that its files come in.

As published: DeepSeek's own names. As transformers writes them: most of these again, in `model.`.
And as transformers has them in memory, which some tools write. As elsewhere names stand without
their ".weight", if they have one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_LAYER = "layers.{layer}."

PUBLISHED: Mapping[str, str] = {
    "embedding": "embed",
    "final_norm": "norm",
    "head": "head",
    "end_mixing": "hc_head_fn",
    "end_base": "hc_head_base",
    "end_scale": "hc_head_scale",
    **{
        role: _LAYER + name
        for role, name in {
            "attention_norm": "attn_norm",
            "feed_forward_norm": "ffn_norm",
            "attention_mixing": "hc_attn_fn",
            "attention_base": "hc_attn_base",
            "attention_scale": "hc_attn_scale",
            "feed_forward_mixing": "hc_ffn_fn",
            "feed_forward_base": "hc_ffn_base",
            "feed_forward_scale": "hc_ffn_scale",
            "query_down": "attn.wq_a",
            "query_down_norm": "attn.q_norm",
            "query_up": "attn.wq_b",
            "key": "attn.wkv",
            "key_norm": "attn.kv_norm",
            "sinks": "attn.attn_sink",
            "output_down": "attn.wo_a",
            "attention_output": "attn.wo_b",
            "compressor_value": "attn.compressor.wkv",
            "compressor_gate": "attn.compressor.wgate",
            "compressor_bias": "attn.compressor.ape",
            "compressor_norm": "attn.compressor.norm",
            "indexer_query": "attn.indexer.wq_b",
            "indexer_weights": "attn.indexer.weights_proj",
            "indexer_value": "attn.indexer.compressor.wkv",
            "indexer_gate": "attn.indexer.compressor.wgate",
            "indexer_bias": "attn.indexer.compressor.ape",
            "indexer_norm": "attn.indexer.compressor.norm",
            "router": "ffn.gate",
            "correction": "ffn.gate.bias",
            "hash_table": "ffn.gate.tid2eid",
            "expert_gate": "ffn.experts.{expert}.w1",
            "expert_up": "ffn.experts.{expert}.w3",
            "expert_down": "ffn.experts.{expert}.w2",
            "shared_gate": "ffn.shared_experts.w1",
            "shared_up": "ffn.shared_experts.w3",
            "shared_down": "ffn.shared_experts.w2",
        }.items()
    },
}

WRITTEN_BY_TRANSFORMERS: Mapping[str, str] = {
    **{role: f"model.{name}" for role, name in PUBLISHED.items()},
    "embedding": "model.embed_tokens",
    "head": "head",
    "end_mixing": "model.hc_head.hc_fn",
    "end_base": "model.hc_head.hc_base",
    "end_scale": "model.hc_head.hc_scale",
    "key_norm": "model.layers.{layer}.attn.norm",
}

# Roles that are not here have the names that all families share (`names.HUGGING_FACE`).
IN_TRANSFORMERS: Mapping[str, str] = {
    "end_mixing": "model.hc_head.hc_fn",
    "end_base": "model.hc_head.hc_base",
    "end_scale": "model.hc_head.hc_scale",
    **{
        role: f"model.{_LAYER}{name}"
        for role, name in {
            "attention_mixing": "attn_hc.fn",
            "attention_base": "attn_hc.base",
            "attention_scale": "attn_hc.scale",
            "feed_forward_mixing": "ffn_hc.fn",
            "feed_forward_base": "ffn_hc.base",
            "feed_forward_scale": "ffn_hc.scale",
            "query_down_norm": "self_attn.q_a_norm",
            "key": "self_attn.kv_proj",
            "key_norm": "self_attn.kv_norm",
            "output_down": "self_attn.o_a_proj",
            "attention_output": "self_attn.o_b_proj",
            "compressor_value": "self_attn.compressor.kv_proj",
            "compressor_gate": "self_attn.compressor.gate_proj",
            "compressor_bias": "self_attn.compressor.position_bias",
            "compressor_norm": "self_attn.compressor.kv_norm",
            "indexer_query": "self_attn.compressor.indexer.q_b_proj",
            "indexer_weights": "self_attn.compressor.indexer.scorer.weights_proj",
            "indexer_value": "self_attn.compressor.indexer.kv_proj",
            "indexer_gate": "self_attn.compressor.indexer.gate_proj",
            "indexer_bias": "self_attn.compressor.indexer.position_bias",
            "indexer_norm": "self_attn.compressor.indexer.kv_norm",
            "hash_table": "mlp.gate.tid2eid",
        }.items()
    },
}


def names_of(tensors: Collection[str]) -> Mapping[str, str]:
    """The layout of a checkpoint with tensors of these names."""
    prefixes = {name[: len("model.")] for name in tensors if ".attn." in name}
    if prefixes:
        return WRITTEN_BY_TRANSFORMERS if prefixes == {"model."} else PUBLISHED
    return IN_TRANSFORMERS if any(".self_attn." in name for name in tensors) else PUBLISHED
