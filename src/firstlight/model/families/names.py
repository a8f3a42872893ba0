"""Tensor names by role, in the two layouts that dense models are published in."""

from __future__ import annotations

from collections.abc import Mapping

# "{layer}" stands for the layer's number. The names are those of transformers' state dicts.
HUGGING_FACE: Mapping[str, str] = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "query": "model.layers.{layer}.self_attn.q_proj",
    "key": "model.layers.{layer}.self_attn.k_proj",
    "value": "model.layers.{layer}.self_attn.v_proj",
    "query_key_value": "model.layers.{layer}.self_attn.qkv_proj",
    "attention_output": "model.layers.{layer}.self_attn.o_proj",
    "query_down": "model.layers.{layer}.self_attn.q_a_proj",
    "query_down_norm": "model.layers.{layer}.self_attn.q_a_layernorm",
    "query_up": "model.layers.{layer}.self_attn.q_b_proj",
    "latent": "model.layers.{layer}.self_attn.kv_a_proj_with_mqa",
    "latent_norm": "model.layers.{layer}.self_attn.kv_a_layernorm",
    "key_value_up": "model.layers.{layer}.self_attn.kv_b_proj",
    "query_norm": "model.layers.{layer}.self_attn.q_norm",
    "key_norm": "model.layers.{layer}.self_attn.k_norm",
    "attention_norm": "model.layers.{layer}.input_layernorm",
    "attention_post_norm": "model.layers.{layer}.post_attention_layernorm",
    "feed_forward_norm": "model.layers.{layer}.post_attention_layernorm",
    "feed_forward_post_norm": "model.layers.{layer}.post_feedforward_layernorm",
    "gate": "model.layers.{layer}.mlp.gate_proj",
    "up": "model.layers.{layer}.mlp.up_proj",
    "gate_up": "model.layers.{layer}.mlp.gate_up_proj",
    "down": "model.layers.{layer}.mlp.down_proj",
}

# The names are those of the GGUF specification, section "Standardized tensor names", and of its
# writers where models need more.
GGUF: Mapping[str, str] = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "query": "blk.{layer}.attn_q",
    "key": "blk.{layer}.attn_k",
    "value": "blk.{layer}.attn_v",
    "query_key_value": "blk.{layer}.attn_qkv",
    "attention_output": "blk.{layer}.attn_output",
    "query_down": "blk.{layer}.attn_q_a",
    "query_down_norm": "blk.{layer}.attn_q_a_norm",
    "query_up": "blk.{layer}.attn_q_b",
    "latent": "blk.{layer}.attn_kv_a_mqa",
    "latent_norm": "blk.{layer}.attn_kv_a_norm",
    "key_value_up": "blk.{layer}.attn_kv_b",
    "key_up": "blk.{layer}.attn_k_b",
    "value_up": "blk.{layer}.attn_v_b",
    "query_norm": "blk.{layer}.attn_q_norm",
    "key_norm": "blk.{layer}.attn_k_norm",
    "attention_norm": "blk.{layer}.attn_norm",
    "attention_post_norm": "blk.{layer}.post_attention_norm",
    "feed_forward_norm": "blk.{layer}.ffn_norm",
    "feed_forward_post_norm": "blk.{layer}.post_ffw_norm",
    "gate": "blk.{layer}.ffn_gate",
    "up": "blk.{layer}.ffn_up",
    "gate_up": "blk.{layer}.ffn_up",
    "down": "blk.{layer}.ffn_down",
}
