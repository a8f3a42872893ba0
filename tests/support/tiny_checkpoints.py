"""Random values for transformers' models, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# As the value of a config's key: the key is left out.
ABSENT: Any = object()


def randomise(model: Any, seed: int) -> None:
    """Give every parameter random values that keep activations near one.

    Norm weights spread around what the class takes for one; matrices are scaled by their columns.
    Where the embedding is also the head it is small, lest every token be followed by itself, and
    the last norm makes up for it.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.get_text_config().tie_word_embeddings
    scaled = "Gemma" in type(model).__name__  # the embedding, by the root of the hidden size
    embedding_size = 1.0 if not tied else 0.03 if scaled else 0.2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                last = tied and name.endswith("model.norm.weight")
                parameter.copy_(parameter + 0.3 * noise + (0.15 / embedding_size if last else 0.0))
            elif parameter.ndim == 1 or name.endswith("_bias"):
                parameter.copy_(0.5 * noise)
            elif "embed" in name:
                parameter.copy_(embedding_size * noise)
            else:
                parameter.copy_(1.3 * noise / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("tid2eid"):  # of each token id, experts that differ
                experts = model.config.num_local_experts
                noise = torch.rand((len(buffer), experts), generator=generator)
                buffer.copy_(noise.argsort(dim=1)[:, : buffer.shape[1]])


def write_checkpoint(
    model: Any, folder: Path, *, dtype: str = "float32", shard_size: str = "40KB"
) -> Path:
    """Save as published: config.json and safetensors shards."""
    copied = model if dtype == "float32" else model.to(getattr(torch, dtype))
    copied.save_pretrained(folder, max_shard_size=shard_size)
    model.float()
    return folder


def rewrite_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of config.json."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ABSENT}
    path.write_text(json.dumps(kept))
