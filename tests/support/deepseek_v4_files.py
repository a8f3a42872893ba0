"""DeepSeek-V4 as DeepSeek publishes it, made of tiny models: its own names and keys of the config,
projections in fp8 and experts in 4 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tests.support.float8_files import quantise
from tests.support.tiny_checkpoints import (
    ABSENT,
    rewrite_config,
)
from tests.support.tiny_models import TinyModel

BLOCK = (8, 8)  # of whole blocks, which transformers takes for granted
BLOCK_OF_EXPERTS = 32
# What is published in fp8; all else but the experts is in bfloat16 or float32.
_IN_FLOAT8 = (
    *(".wq_a.", ".wq_b.", ".wkv.", ".wo_a.", ".wo_b.", ".shared_experts."),
    *(".e_proj.", ".h_proj."),
)
_RENAMED = {
    "model.embed_tokens.": "embed.",
    "model.norm.": "norm.",
    "model.hc_head.hc_": "hc_head_",
    ".attn.norm.": ".attn.kv_norm.",
    "model.layers.": "layers.",
}

# Runs of 4 and of 128 tokens, as published, and sizes that blocks of 32 fill.
PUBLISHED = TinyModel(
    "deepseek_v4-published",
    "DeepseekV4ForCausalLM",
    {
        "num_key_value_heads": 1,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "head_dim": 16,
        "q_lora_rank": 24,
        "partial_rotary_factor": 0.5,
        "o_groups": 2,
        "o_lora_rank": 12,
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 9,
        "sliding_window": 24,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "swiglu_limit": 2.0,
        "routed_scaling_factor": 1.5,
        "num_hidden_layers": 4,
        "layer_types": [
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"],
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 128,
        },
    },
)
_CONFIG = {
    "compress_ratios": [0, 128, 4, 128, 0],  # the last is of the layer that predicts further tokens
    "num_hash_layers": 2,
    "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 8,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 128,
    },
    "topk_method": "noaux_tc",
    **dict.fromkeys(
        (
            "layer_types",
            "mlp_layer_types",
            "compress_rates",
            "rope_parameters",
            "partial_rotary_factor",
        ),
        ABSENT,
    ),
}


def write_published(folder: Path, *, quantised: bool = False) -> dict[str, torch.Tensor]:
    """Save the model `PUBLISHED` under DeepSeek's names, experts in 4 bits and projections in fp8
    if it is to be quantised.

    Returns:
        The values of what was saved, by published name, as transformers dequantises them.
    """
    model = PUBLISHED.build()
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    values = {published_name(name): value for name, value in load_file(path).items()}
    values |= _prediction_layer(values)
    stored: dict[str, torch.Tensor] = {}
    for name, value in dict(values).items():
        found = _quantised(name, value) if quantised else None
        if found is None:
            stored[name] = value.contiguous()
            continue
        codes, scales = found
        stored[name], stored[f"{name.removesuffix('weight')}scale"] = codes, scales
        dequantise: Any = Fp8Dequantize(None)._dequantize_one
        values[name] = dequantise(codes, scales, torch.float32)
    save_file(stored, path, metadata={"format": "pt"})
    rewrite_config(folder, {**_CONFIG, **(_quantization() if quantised else {})})
    return values


def write_values(folder: Path, values: dict[str, torch.Tensor]) -> Path:
    """Save these values under published names, with nothing quantised."""
    write_published(folder)
    tensors = {name: value.contiguous() for name, value in values.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _prediction_layer(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer of multi-token prediction, of the model's own tensors: the attention of the first
    layer, which has a window alone, and the experts of the third, chosen by score."""
    found = {
        f"mtp.0.{name.removeprefix(stem)}": value.clone()
        for stem, parts in {
            "layers.0.": ("attn", "hc_attn"),
            "layers.2.": ("ffn", "hc_ffn"),
        }.items()
        for name, value in values.items()
        if name.startswith(tuple(f"{stem}{part}" for part in parts))
    }
    generator = torch.Generator().manual_seed(7)
    for name in ("e_proj", "h_proj"):
        found[f"mtp.0.{name}.weight"] = torch.randn((64, 64), generator=generator) / 8
    for name in ("enorm", "hnorm", "norm"):
        found[f"mtp.0.{name}.weight"] = values["norm.weight"].clone()
    for name in ("fn", "base", "scale"):
        found[f"mtp.0.hc_head_{name}"] = values[f"hc_head_{name}"].clone()
    return found


def published_name(name: str) -> str:
    """DeepSeek's name of a tensor that transformers has written."""
    for written, published in _RENAMED.items():
        name = name.replace(written, published)
    return name


def _quantised(name: str, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    if ".experts." in name:
        return _in_four_bits(value)
    if "compressor" not in name and any(part in name for part in _IN_FLOAT8):
        codes, scales = quantise(value, BLOCK, powers_of_two=True)
        return codes, scales.to(torch.float8_e8m0fnu)
    return None


def _in_four_bits(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [rows, columns / 2], the first of two in the lower bits, and scales E8M0."""
    blocks = value.reshape(len(value), -1, BLOCK_OF_EXPERTS)
    scales = torch.exp2(torch.ceil(torch.log2(blocks.abs().amax(2) / 6.0)))
    table = torch.tensor(Fp8Dequantize._FP4_E2M1_LUT)
    distances = (blocks / scales[..., None])[..., None] - table
    codes = distances.abs().argmin(-1).reshape(value.shape).to(torch.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed.view(torch.int8), scales.to(torch.float8_e8m0fnu)


def _quantization() -> dict[str, Any]:
    return {
        "expert_dtype": "fp4",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": list(BLOCK),
        },
    }
