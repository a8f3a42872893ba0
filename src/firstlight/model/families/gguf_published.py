"""The config.json that a GGUF file's model would have been published with.

GGUF's metadata leave out what its reader takes for granted, so the numbers of the spec, which knows
them, go in as well; and whether the result says the same model is checked (`same_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from firstlight.model.attention_spec import GroupedQuerySpec
from firstlight.model.families.config import Config
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.rope import inverse_frequencies
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource

# Family -> model type, and transformers' class. Others' files say too little, or hold tensors that
# are published in another shape.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "glm4_moe": ("glm4_moe", "Glm4MoeForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
    "olmoe": ("olmoe", "OlmoeForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen2_moe": ("qwen2_moe", "Qwen2MoeForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
}
_OWN = (
    "value_length",
    "key_length_mla",
    "value_length_mla",
    "rope_dimension_count",
    "rope_finetuned",
)


_ORIGINAL = "original_max_position_embeddings"
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    _ORIGINAL: 8192,
}


def published_config(config: Config, spec: ModelSpec) -> dict[str, Any] | None:
    """The config in the published vocabulary; None where there is no word for the family.

    Args:
        config: what `config_from_metadata` gave.
        spec: what the family made of it.
    """
    if spec.family not in ARCHITECTURES:
        return None
    model_type, architecture = ARCHITECTURES[spec.family]
    found = {key: value for key, value in config.values.items() if value is not None}
    turned = found.get("rope_dimension_count")
    for key in _OWN:
        found.pop(key, None)
    found |= {"model_type": model_type, "architectures": [architecture]}
    attention = [layer.attention for layer in spec.layers]
    plain = [each for each in attention if isinstance(each, GroupedQuerySpec)]
    if not plain:
        return None
    first = plain[0]
    found["head_dim"] = first.head_size
    found["attention_bias"] = first.query.bias is not None
    found["use_qk_norm"] = first.query_norm is not None  # GLM's
    found["num_hidden_layers"] = len(spec.layers)
    found["num_nextn_predict_layers"] = 0
    for layer in spec.layers:
        if isinstance(layer.feed_forward, ExpertsSpec):
            found["norm_topk_prob"] = layer.feed_forward.routing.numbers.renormalised
        else:
            found["mlp_bias"] = layer.feed_forward.gate.bias is not None
    scaling = found.get("rope_scaling") or {}
    if scaling.get("rope_type") == "factors":
        # Written for Llama 3.1 and later, whose config has one of two factors and these lengths.
        scaling = found["rope_scaling"] = {**_LLAMA3, "factor": max(scaling["factors"])}
    if spec.family == "phi3" and _ORIGINAL in scaling:
        found[_ORIGINAL] = scaling[_ORIGINAL]
    if turned is not None and turned != first.head_size:
        found["partial_rotary_factor"] = turned / first.head_size
    if spec.family in ("gemma2", "gemma3"):
        found["query_pre_attn_scalar"] = round(first.scale**-2)
    windows = [each.window for each in plain]
    if any(windows) and not all(windows):
        kinds = {True: "sliding_attention", False: "full_attention"}
        found["layer_types"] = [kinds[window is not None] for window in windows]
        found.pop("sliding_window_pattern", None)
    return found


def same_model(one: Any, other: Any) -> bool:
    """Whether two specs are of one model, wherever their tensors are and whichever values of a head
    turn together."""
    if isinstance(one, TensorSource) and isinstance(other, TensorSource):
        return one.shape == other.shape
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same_model, one, other))
    if (
        isinstance(one, RopeSpec)
        and isinstance(other, RopeSpec)
        and type(one.scaling) is not type(other.scaling)
    ):
        return _same_angles(one, other)
    if is_dataclass(one) and type(one) is type(other):
        names = (each.name for each in fields(one) if each.name not in ("interleaved", "notes"))
        return all(same_model(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


def _same_angles(one: RopeSpec, other: RopeSpec) -> bool:
    if one.size != other.size:
        return False
    (ours, factor), (theirs, other_factor) = (inverse_frequencies(each, 1) for each in (one, other))
    return factor == other_factor and bool(np.allclose(ours, theirs, rtol=1e-5, atol=0))
