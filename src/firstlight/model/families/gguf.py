"""A GGUF file's metadata in the config vocabulary that families read.

Keys are those of the GGUF specification (docs/gguf.md of https://github.com/ggml-org/ggml,
section "Standardized key-value pairs") and of llama.cpp, which adds to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from firstlight.errors import CheckpointError
from firstlight.model.families.config import Config, shown
from firstlight.model.families.parts import MOST_LAYERS
from firstlight.model.tensor_files import TensorFiles

# Key after "<architecture>." -> the config's key.
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "value_length",
    "attention.key_length_mla": "key_length_mla",
    "attention.value_length_mla": "value_length_mla",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.dimension_count": "rope_dimension_count",
    "rope.scaling.finetuned": "rope_finetuned",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": "num_nextn_predict_layers",
}
# Families of Hugging Face's do not agree on what they call the number of experts.
_EXPERT_COUNTS = ("num_local_experts", "n_routed_experts")
# Where these are absent the reader, llama.cpp, does not ask what family the model is of.
_ABSENT = {"num_key_value_heads": None, "head_dim": None, "rope_theta": 10_000.0}
# Keys that would change the model, and the only value that leaves it as the families build it.
_NEUTRAL = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "use_parallel_residual": False,
}
_SCALING = "rope.scaling."
_SCALING_KEYS = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_attn_factor": "attention_factor",
    "attn_factor": "attn_factor",
    "finetuned": "finetuned",
}
# Of DeepSeek's files alone: a tenth of the weight of YaRN's magnitude in scores and, as none of
# their models has another, of that in cosines and sines.
_MAGNITUDE = "yarn_log_multiplier"
_SCALING_TYPES = ("none", "linear", "yarn", "longrope")
# Frequencies' factors: half a head at most.
_MOST_FACTORS = 1 << 16


def config_from_metadata(
    metadata: Mapping[str, Any], files: TensorFiles, experts: bool = False
) -> Config:
    """The metadata translated; what it leaves to the tensors (vocabulary, head) is added.

    Args:
        experts: the family knows mixtures of experts.

    Raises:
        CheckpointError, UnsupportedModelError: a value is not usable, or asks for what the families
            do not have.
    """
    prefix = f"{metadata['general.architecture']}."
    own = Config(
        files.location,
        {
            key.removeprefix(prefix): _scalar(value)
            for key, value in metadata.items()
            if key.startswith(prefix)
        },
        lambda key: prefix + key,
    )
    _refuse(own, experts)
    config: dict[str, Any] = dict(_ABSENT)
    for key, name in _KEYS.items():
        value = own.values.get(key)
        if isinstance(value, list):
            raise own.unsupported(key, "differs from layer to layer")
        if value is not None:
            config[name] = value
    # Whether the table is there, and is one, is found out when tensors are checked.
    embedding = files.tensors.get("token_embd.weight")
    config["vocab_size"] = embedding.shape[0] if embedding is not None and embedding.shape else 1
    config["tie_word_embeddings"] = "output.weight" not in files.tensors
    config["rope_scaling"] = _rope_scaling(own, files)
    if experts:
        config |= {name: config.get("num_experts") for name in _EXPERT_COUNTS}
        # Scores' function, in the order of llama.cpp's enumeration; zero says nothing.
        gating = own.integer("expert_gating_func", 0, least=0)
        config["scoring_func"] = {1: "softmax", 2: "sigmoid"}.get(gating)
        if gating > 2:
            raise own.unsupported("expert_gating_func")
    names = {name: prefix + key for key, name in _KEYS.items()}
    names |= dict.fromkeys(_EXPERT_COUNTS, f"{prefix}expert_count")
    return Config(files.location, {**config, **_sliding(own)}, lambda key: names.get(key, key))


def _refuse(own: Config, experts: bool) -> None:
    for key, neutral in _NEUTRAL.items():
        if experts and key == "expert_count":
            continue
        if own.values.get(key, neutral) != neutral:
            raise own.unsupported(key)
    if own.has("attention.kv_lora_rank"):
        return
    lengths = [own.values.get(f"attention.{part}_length") for part in ("key", "value")]
    if None not in lengths and lengths[0] != lengths[1]:
        raise own.unsupported("attention.value_length", "differs from the key's")


def _scalar(value: Any) -> Any:
    """A value given per layer, as one value where all layers have the same; else a list."""
    if not isinstance(value, np.ndarray | list):
        return value
    values = list(value) if len(value) <= MOST_LAYERS else []
    if not all(isinstance(item, bool | int | float | np.generic) for item in values):
        return []
    values = np.asarray(values).tolist()
    return values[0] if values and values.count(values[0]) == len(values) else values


def _sliding(own: Config) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if own.has("attention.sliding_window"):
        # Zero is how writers say that no layer slides.
        config["sliding_window"] = own.values["attention.sliding_window"] or None
    pattern = own.values.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        names = {True: "sliding_attention", False: "full_attention"}
        config["layer_types"] = [names[bool(slides)] for slides in pattern]
    elif isinstance(pattern, bool):
        config["sliding_window_pattern"] = 1 << 30 if pattern else 1
    elif pattern is not None:
        config["sliding_window_pattern"] = pattern
    return config


def _rope_scaling(own: Config, files: TensorFiles) -> dict[str, Any] | None:
    given = {
        key.removeprefix(_SCALING): key
        for key in own.values
        if key.startswith(_SCALING) and own.has(key)
    }
    magnitude = {}
    if _MAGNITUDE in given and own.has("attention.kv_lora_rank"):
        weight = 10 * own.number(given.pop(_MAGNITUDE))
        magnitude = {"mscale": weight, "mscale_all_dim": weight}
    for name, key in given.items():
        if name not in _SCALING_KEYS:
            raise own.unsupported(key)
    scaling = {_SCALING_KEYS[name]: own.values[key] for name, key in given.items()} | magnitude
    if not scaling.get("factor"):  # zero says that there is none
        scaling["factor"] = own.values.get("rope.scale_linear") or 1.0
    kind = scaling.setdefault("rope_type", "linear")
    if kind not in _SCALING_TYPES:
        raise own.unsupported(f"{_SCALING}type")
    attention_factor = scaling.pop("attn_factor", 1.0)
    if "rope_factors_long.weight" in files.tensors:
        scaling |= {
            "rope_type": "longrope",
            "short_factor": _factors(files, "rope_factors_short.weight"),
            "long_factor": _factors(files, "rope_factors_long.weight"),
            "attention_factor": attention_factor,
        }
        return scaling
    if attention_factor != 1.0:
        raise own.unsupported(f"{_SCALING}attn_factor")
    if "rope_freqs.weight" in files.tensors:
        if kind not in ("none", "linear") or scaling["factor"] != 1.0:
            raise own.unsupported(f"{_SCALING}type", f"is {shown(kind)} beside 'rope_freqs.weight'")
        return {"rope_type": "factors", "factors": _factors(files, "rope_freqs.weight")}
    if kind == "none" or (kind == "linear" and scaling["factor"] == 1.0):
        return None
    return scaling


def _factors(files: TensorFiles, name: str) -> list[float]:
    header = files.tensors.get(name)
    if header is None or len(header.shape) != 1 or header.shape[0] > _MOST_FACTORS:
        shape = "missing" if header is None else f"of shape {list(header.shape)}"
        raise CheckpointError(
            files.location,
            f"tensor {name!r} is {shape}, where a list of factors belongs",
            "Convert the model to GGUF again with a current llama.cpp",
        )
    return [float(factor) for factor in files.weight(name).values()]
