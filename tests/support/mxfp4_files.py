"""gpt-oss as it is published: experts stacked, in mxfp4."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.support.tiny_checkpoints import rewrite_config
from tests.support.tiny_models import TinyModel, tiny_model

_STACKED = ("experts.gate_up_proj", "experts.down_proj")


def random_mxfp4(generator: torch.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random codes and scales of matrices [experts, rows, columns], of about the usual size."""
    *rows, columns = shape
    codes = torch.randint(0, 256, (*rows, columns // 32, 16), generator=generator)
    scales = torch.randint(121, 125, (*rows, columns // 32), generator=generator)
    return codes.to(torch.uint8), scales.to(torch.uint8)


def write_gpt_oss(root: Path) -> tuple[Path, Path]:
    """A tiny gpt-oss with experts in mxfp4; and the same as transformers decodes it."""
    changes = {**tiny_model("gpt_oss").changes, "hidden_size": 96, "intermediate_size": 64}
    model = TinyModel("gpt_oss", "GptOssForCausalLM", changes)
    theirs, ours = root / "decoded", root / "packed"
    for folder in (theirs, ours):
        model.build().save_pretrained(folder, max_shard_size="10GB")
    plain = load_file(theirs / "model.safetensors")
    packed = {}
    generator = torch.Generator().manual_seed(11)
    for name, value in dict(plain).items():
        if not name.endswith(_STACKED):
            packed[name] = value
            continue
        experts, columns, rows = value.shape
        codes, scales = random_mxfp4(generator, experts, rows, columns)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = codes, scales
        plain[name] = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
        assert plain[name].shape == value.shape
    save_file(plain, theirs / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, ours / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(ours, {"quantization_config": {"quant_method": "mxfp4"}})
    return ours, theirs
