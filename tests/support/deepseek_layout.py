"""Checkpoints with their tensors named as in DeepSeek's inference code."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

# By the name of the module that a tensor belongs to.
_MODULES = {
    "embed_tokens": "embed",
    "lm_head": "head",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "wq",
    "q_a_proj": "wq_a",
    "q_a_layernorm": "q_norm",
    "q_b_proj": "wq_b",
    "kv_a_proj_with_mqa": "wkv_a",
    "kv_a_layernorm": "kv_norm",
    "kv_b_proj": "wkv_b",
    "o_proj": "wo",
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
}
# Names of modules around, and of tensors themselves.
_OTHERS = {"self_attn": "attn", "mlp": "ffn", "weight_scale_inv": "scale"}


def deepseek_name(name: str) -> str:
    """Of a tensor that is called so in transformers' layout."""
    if name.endswith("gate.e_score_correction_bias"):
        name = name.replace("e_score_correction_bias", "bias")
    parts = name.removeprefix("model.").split(".")
    parts[-2] = _MODULES.get(parts[-2], parts[-2])
    return ".".join(_OTHERS.get(part, part) for part in parts)


def rename_tensors(folder: Path) -> list[str]:
    """Write a folder's tensors anew, in one file as DeepSeek's conversion names it; their names."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors*")):
        if path.suffix == ".safetensors":
            tensors |= {deepseek_name(name): value for name, value in load_file(path).items()}
        path.unlink()
    save_file(tensors, folder / "model0-mp1.safetensors")
    return sorted(tensors)
