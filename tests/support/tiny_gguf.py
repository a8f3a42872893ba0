"""Tiny GGUF files, written from transformers' models as llama.cpp's converters write them.

The conventions are those of conversion/*.py in https://github.com/ggml-org/llama.cpp; tensor names
come from the gguf package's own map.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tests.support.tiny_models import TinyModel

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
}
_PERMUTED = ("llama", "mistral", "smollm3", "granite", "mixtral")


# What GGUF has no keys for: dense layers among those with experts, a window outside Gemma, Phi and
# gpt-oss, dynamic scaling, layers chosen one by one, a scale of the scores that does not follow
# from the sizes, or gpt-oss's limit, and DeepSeek's magnitudes that differ, its biases, keys that
# turn in halves, and groups of experts that are not used; and what is not read yet: DeepSeek-V4.
_NOT_EXPRESSIBLE = (
    "mistral",
    "qwen2-sliding",
    "qwen3-mixed",
    "llama-dynamic",
    "smollm3-sliding",
    "mixtral-sliding",
    "qwen2_moe-partly-dense",
    "qwen3_moe-partly-dense",
    "deepseek_v3-halves",
    "deepseek_v4",
    "deepseek_v4-yarn",
)
_SCALED_BY_HEAD_SIZE = {"query_pre_attn_scalar": 12}


def expressible(tiny: TinyModel) -> TinyModel | None:
    """The nearest that a GGUF file can say; None: it cannot."""
    if tiny.family not in _ARCHITECTURES or tiny.name in _NOT_EXPRESSIBLE:
        return None
    if "query_pre_attn_scalar" in tiny.changes:
        tiny = replace(tiny, changes={**tiny.changes, **_SCALED_BY_HEAD_SIZE})
    if "swiglu_limit" in tiny.changes:
        tiny = replace(tiny, changes={**tiny.changes, "swiglu_limit": 7.0})
    if tiny.family == "deepseek_v2":
        changes = {"attention_bias": False, "topk_method": "group_limited_greedy"}
        tiny = replace(tiny, changes={**tiny.changes, **changes})
    if tiny.family == "deepseek_v3":
        rope = {**tiny.changes["rope_parameters"], "mscale_all_dim": 1.0}
        tiny = replace(tiny, changes={**tiny.changes, "rope_parameters": rope})
    return tiny


def write_gguf(tiny: TinyModel, model: Any, path: Path, *, old: bool = False) -> Path:
    """Convert a model built from `tiny`; matrices stay float32.

    Args:
        old: DeepSeek's as before May 2025, with up-projections of keys and values in one.
    """
    architecture = _ARCHITECTURES[tiny.family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    config = model.config
    latent = tiny.family.startswith("deepseek")
    # Layers that look ahead are left out of DeepSeek's files, and out of the count.
    ahead = 0 if latent else getattr(config, "num_nextn_predict_layers", 0)
    _write_sizes(writer, config, config.num_hidden_layers + ahead)
    if latent:
        _write_latent(writer, config, old)
    else:
        _write_family(writer, tiny.family, config)
    _write_rope(writer, tiny.family, config)
    _write_tensors(writer, tiny.family, model, old, gguf.get_tensor_name_map(architecture, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_sizes(writer: gguf.GGUFWriter, config: Any, layers: int) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # Of the tokenizer only this: transformers sets it up as a row of the embedding.
    writer.add_pad_token_id(0)


def _write_family(writer: gguf.GGUFWriter, family: str, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None and family != "granite":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if family in _PERMUTED:
        writer.add_rope_dimension_count(_head_size(config))
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if family == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if hasattr(config, "num_experts_per_tok"):
        _write_experts(writer, family, config)
    if family == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _write_latent(writer: gguf.GGUFWriter, config: Any, old: bool) -> None:
    """Sizes of heads, latents and experts: set_gguf_parameters of conversion/deepseek.py."""
    rope, plain, value = config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_rope_dimension_count(rope)
    writer.add_key_length(plain + rope if old else config.kv_lora_rank + rope)
    writer.add_value_length(value if old else config.kv_lora_rank)
    if not old:
        writer.add_key_length_mla(plain + rope)
        writer.add_value_length_mla(value)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    if config.model_type == "deepseek_v3":
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _write_experts(writer: gguf.GGUFWriter, family: str, config: Any) -> None:
    counts = ("num_local_experts", "num_experts")
    writer.add_expert_count(next(getattr(config, k) for k in counts if hasattr(config, k)))
    writer.add_expert_used_count(config.num_experts_per_tok)
    if family == "gpt_oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_sliding_window(config.sliding_window)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if family == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if family == "glm4_moe":
        writer.add_rope_dimension_count(config.head_dim // 2)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
        writer.add_nextn_predict_layers(config.num_nextn_predict_layers)


def _write_rope(writer: gguf.GGUFWriter, family: str, config: Any) -> None:
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if family == "phi3":
        original = config.original_max_position_embeddings
        writer.add_rope_dimension_count(
            int(rope.get("partial_rotary_factor", 1.0) * _head_size(config))
        )
        writer.add_rope_scaling_orig_ctx_len(original)
        if rope["rope_type"] == "longrope":
            scale = config.max_position_embeddings / original
            magnitude = math.sqrt(1 + math.log(scale) / math.log(original))
            writer.add_rope_scaling_attn_factors(magnitude)
            for length in ("long", "short"):
                factors = np.asarray(rope[f"{length}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{length}.weight", factors)
    elif rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    elif rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, _head_size(config)))


def _llama3_factors(rope: dict[str, Any], head_size: int) -> np.ndarray:
    """Per frequency, what the converter has it divided by."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head_size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_size)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(factors, np.float32)


def _write_tensors(writer: gguf.GGUFWriter, family: str, model: Any, old: bool, names: Any) -> None:
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float()
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if ".experts." in name:
            _write_expert_tensor(writer, family, name, values)
            continue
        if name.endswith("kv_b_proj.weight") and not old:
            _write_up_projections(writer, config, name, values)
            continue
        for part, written in _OF_EXPERTS.items():
            if name.endswith(part):
                writer.add_tensor(f"blk.{name.split('.')[2]}.{written}", values.numpy())
                break
        else:
            _write_tensor(writer, family, config, names, name, values)


# What the gguf package's own map knows by other names than those of transformers 5.
_OF_EXPERTS = {
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "self_attn.sinks": "attn_sinks.weight",
}


def _write_expert_tensor(
    writer: gguf.GGUFWriter, family: str, name: str, values: torch.Tensor
) -> None:
    """Of all experts: gate and up are written apart, and gpt-oss's matrices turned round."""
    layer, role = name.split(".")[2], name.rpartition(".")[2]
    suffix = "bias" if role.endswith("_bias") else "weight"
    if family == "gpt_oss" and suffix == "weight":
        values = values.transpose(1, 2)
    if role.startswith("down"):
        parts = {"down": values}
    elif family == "gpt_oss":
        parts = {"gate": values[:, 0::2], "up": values[:, 1::2]}
    else:
        gate, up = values.chunk(2, dim=1)
        parts = {"gate": gate, "up": up}
    for part, each in parts.items():
        writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.{suffix}", each.contiguous().numpy())


def _write_up_projections(
    writer: gguf.GGUFWriter, config: Any, name: str, values: torch.Tensor
) -> None:
    """Of keys, turned round, and of values: a matrix for each head."""
    layer, plain = name.split(".")[2], config.qk_nope_head_dim
    both = values.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    keys = both[:, :plain].transpose(1, 2).contiguous()
    writer.add_tensor(f"blk.{layer}.attn_k_b.weight", keys.numpy())
    writer.add_tensor(f"blk.{layer}.attn_v_b.weight", both[:, plain:].contiguous().numpy())


def _write_tensor(
    writer: gguf.GGUFWriter,
    family: str,
    config: Any,
    names: Any,
    name: str,
    values: torch.Tensor,
) -> None:
    if family in _PERMUTED and name.endswith(("q_proj.weight", "q_proj.bias")):
        values = _permute(values, config.num_attention_heads)
    if family in _PERMUTED and name.endswith(("k_proj.weight", "k_proj.bias")):
        values = _permute(values, config.num_key_value_heads)
    if family in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        values = values + 1
    written = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert written is not None, name
    writer.add_tensor(written, values.numpy())


def _permute(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from two halves to pairs of neighbours."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _head_size(config: Any) -> int:
    size: int = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return size
