"""The config of DeepSeek's inference code, in the words of config.json as it is published.

Its conversion of a checkpoint writes weights alone; the config that belongs to them is a file
beside that code (`configs/config_671B.json` and others), whose keys are those of its `ModelArgs`.
Copied to config.json it is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Their key -> (the published one, what it is where the file is silent).
_KEYS: Mapping[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 102400),
    "dim": ("hidden_size", 2048),
    "inter_dim": ("intermediate_size", 10944),
    "moe_inter_dim": ("moe_intermediate_size", 1408),
    "n_layers": ("num_hidden_layers", 27),
    "n_dense_layers": ("first_k_dense_replace", 1),
    "n_heads": ("num_attention_heads", 16),
    "n_routed_experts": ("n_routed_experts", 64),
    "n_shared_experts": ("n_shared_experts", 2),
    "n_activated_experts": ("num_experts_per_tok", 6),
    "n_expert_groups": ("n_group", 1),
    "n_limited_groups": ("topk_group", 1),
    "score_func": ("scoring_func", "softmax"),
    "route_scale": ("routed_scaling_factor", 1.0),
    "q_lora_rank": ("q_lora_rank", 0),
    "kv_lora_rank": ("kv_lora_rank", 512),
    "qk_nope_head_dim": ("qk_nope_head_dim", 128),
    "qk_rope_head_dim": ("qk_rope_head_dim", 64),
    "v_head_dim": ("v_head_dim", 128),
    "max_seq_len": ("max_position_embeddings", 16384),
    "rope_theta": ("rope_theta", 10_000.0),
}
_INDEXER: Mapping[str, Any] = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
_SCALING: Mapping[str, tuple[str, Any]] = {
    "original_seq_len": ("original_max_position_embeddings", 4096),
    "rope_factor": ("factor", 40),
    "beta_fast": ("beta_fast", 32),
    "beta_slow": ("beta_slow", 1),
    "mscale": ("mscale", 1.0),
}
# Without these nothing says that it is such a file.
_OWN = ("dim", "inter_dim", "n_layers", "n_heads")
_BLOCK = 128


def in_published_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as config.json has it; one that says so already comes back as it is.

    What values they are is not looked at: that is for whoever reads them.
    """
    if "model_type" in config or not all(key in config for key in _OWN):
        return dict(config)
    made = {name: config.get(key, default) for key, (name, default) in _KEYS.items()}
    sigmoid = made["scoring_func"] == "sigmoid"
    indexed = any(key in config for key in _INDEXER)
    grouped = "noaux_tc" if sigmoid else "group_limited_greedy"
    made |= {
        "model_type": "deepseek_v32" if indexed else "deepseek_v3" if sigmoid else "deepseek_v2",
        "num_key_value_heads": made["num_attention_heads"],
        "q_lora_rank": made["q_lora_rank"] or None,
        "topk_method": grouped if sigmoid or made["n_group"] != 1 else "greedy",
        # Weights of sigmoid scores are divided by their sum, and others are not.
        "norm_topk_prob": sigmoid,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    if indexed:
        made |= {key: config.get(key, default) for key, default in _INDEXER.items()}
    scaling = {name: config.get(key, default) for key, (name, default) in _SCALING.items()}
    if _is_longer(made["max_position_embeddings"], scaling["original_max_position_embeddings"]):
        # One number for both: it scales the scores, and leaves cosines and sines as they are.
        made["rope_scaling"] = {"type": "yarn", **scaling, "mscale_all_dim": scaling["mscale"]}
    if config.get("dtype") == "fp8":
        made["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [_BLOCK, _BLOCK],
        }
    return made


def _is_longer(length: Any, original: Any) -> bool:
    numbers = isinstance(length, int | float) and isinstance(original, int | float)
    return numbers and length > original
