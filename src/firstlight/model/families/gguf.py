"""A GGUF file's metadata in the config vocabulary that families read.

Keys are those of the GGUF specification, section "Standardized key-value pairs"; a family's own
keys are translated in the family's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstlight.model.weights import TensorFiles

# Key after "<architecture>." -> the config's key.
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
}


def config_from_metadata(metadata: Mapping[str, Any], files: TensorFiles) -> dict[str, Any]:
    """The metadata translated; what it leaves to the tensors (vocabulary, biases) is added."""
    architecture = metadata.get("general.architecture")
    config: dict[str, Any] = {"model_type": architecture}
    for key, name in _KEYS.items():
        value = metadata.get(f"{architecture}.{key}")
        if value is not None:
            config[name] = value
    embedding = files.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    config["attention_bias"] = "blk.0.attn_q.bias" in files.tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in files.tensors
    config["tie_word_embeddings"] = "output.weight" not in files.tensors
    turned = metadata.get(f"{architecture}.rope.dimension_count")
    heads = config.get("num_attention_heads")
    width = config.get("hidden_size")
    if isinstance(turned, int) and isinstance(heads, int) and isinstance(width, int) and heads > 0:
        head_size = config.get("head_dim") or width // heads
        if isinstance(head_size, int) and head_size > 0:
            config["partial_rotary_factor"] = turned / head_size
    config["rope_scaling"] = _rope_scaling(metadata, str(architecture), files)
    return config


def _rope_scaling(
    metadata: Mapping[str, Any], architecture: str, files: TensorFiles
) -> dict[str, Any] | None:
    if "rope_freqs.weight" in files.tensors:
        factors = files.weight("rope_freqs.weight").values().reshape(-1)
        return {"rope_type": "factors", "factors": [float(factor) for factor in factors]}
    kind = metadata.get(f"{architecture}.rope.scaling.type")
    if kind in (None, "none"):
        return None
    keys = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    scaling = {
        name: metadata.get(f"{architecture}.rope.scaling.{key}") for key, name in keys.items()
    }
    return {"rope_type": kind, **scaling}
