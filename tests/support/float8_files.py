"""Checkpoints in fp8 with scales of blocks, as DeepSeek publishes them, made of tiny models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

BLOCK = (16, 8)


def quantise(
    matrix: torch.Tensor, block: tuple[int, int], powers_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales float32 [row blocks, column blocks]); the last blocks may be cut short."""
    codes = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn)
    rows, columns = (
        (size + part - 1) // part for size, part in zip(matrix.shape, block, strict=True)
    )
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = (
                slice(row * block[0], (row + 1) * block[0]),
                slice(column * block[1], (column + 1) * block[1]),
            )
            scale = matrix[part].abs().max() / 448.0
            if powers_of_two:
                scale = torch.exp2(torch.ceil(torch.log2(scale)))
            scales[row, column] = scale
            codes[part] = (matrix[part] / scale).to(torch.float8_e4m3fn)
    return codes, scales


def dequantise(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """float32, each value rounded once."""
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def published(model: Any) -> dict[str, torch.Tensor]:
    """Views of a model's tensors by their published names: experts one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if not name.endswith(("mlp.experts.gate_up_proj", "mlp.experts.down_proj")):
            found[name] = value
            continue
        stem, _, role = name.rpartition(".")
        for index, matrix in enumerate(value):
            if role == "down_proj":
                found[f"{stem}.{index}.down_proj.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                found[f"{stem}.{index}.gate_proj.weight"] = gate
                found[f"{stem}.{index}.up_proj.weight"] = up
    return found


def write_float8(
    model: Any,
    folder: Path,
    *,
    block: tuple[int, int] = BLOCK,
    scale_dtype: torch.dtype = torch.float32,
) -> Any:
    """Save a model with its projections in fp8, experts one by one as they are published.

    Returns:
        A copy whose weights are the values of what was saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = copy.deepcopy(model)
    powers = scale_dtype == torch.float8_e8m0fnu
    tensors: dict[str, torch.Tensor] = {}
    for name, value in published(values).items():
        if "_proj" not in name or value.ndim != 2:
            tensors[name] = value.clone()
            continue
        codes, scales = quantise(value, block, powers)
        tensors[name] = codes
        tensors[f"{name}_scale_inv"] = scales.to(scale_dtype)
        value.copy_(dequantise(codes, tensors[f"{name}_scale_inv"].float(), block))
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(block),
        **({"scale_fmt": "ue8m0"} if powers else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return values
