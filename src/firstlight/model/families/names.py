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
    # Of experts: one by one, or all of a layer in one tensor.
    "router": "model.layers.{layer}.mlp.gate",
    "correction": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    "expert_gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
    "expert_up": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
    "expert_down": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    "experts_gate_up": "model.layers.{layer}.mlp.experts.gate_up_proj",
    "experts_down": "model.layers.{layer}.mlp.experts.down_proj",
    "shared_gate": "model.layers.{layer}.mlp.shared_experts.gate_proj",
    "shared_up": "model.layers.{layer}.mlp.shared_experts.up_proj",
    "shared_down": "model.layers.{layer}.mlp.shared_experts.down_proj",
    "shared_weight": "model.layers.{layer}.mlp.shared_expert_gate",
    "sinks": "model.layers.{layer}.self_attn.sinks",
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
    "router": "blk.{layer}.ffn_gate_inp",
    "correction": "blk.{layer}.exp_probs_b.bias",
    "expert_gate": "blk.{layer}.ffn_gate.{expert}",
    "expert_up": "blk.{layer}.ffn_up.{expert}",
    "expert_down": "blk.{layer}.ffn_down.{expert}",
    "experts_gate": "blk.{layer}.ffn_gate_exps",
    "experts_up": "blk.{layer}.ffn_up_exps",
    "experts_down": "blk.{layer}.ffn_down_exps",
    "shared_gate": "blk.{layer}.ffn_gate_shexp",
    "shared_up": "blk.{layer}.ffn_up_shexp",
    "shared_down": "blk.{layer}.ffn_down_shexp",
    "shared_weight": "blk.{layer}.ffn_gate_inp_shexp",
    "sinks": "blk.{layer}.attn_sinks.weight",
}
