"""Tiny checkpoints with a layer of multi-token prediction, and what it predicts by transformers.

transformers leaves such layers out; here one is put together from its parts.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_checkpoints import (
    randomise,
    rewrite_config,
)
from tests.support.tiny_models import TinyModel

# By the last part of their published names.
_NORMS = ("enorm", "hnorm", "shared_head.norm")

# Of transformers' names: what a block gives to the residual stream.
_BLOCKS_END = ("o_proj.weight", "o_b_proj.weight", "down_proj.weight", "experts.down_proj")


@dataclass(frozen=True)
class WithPredictor:
    """A model of transformers with one layer more than it runs, which is the predictor's.

    Attributes:
        norms: by the names in _NORMS.
        join: [hidden, 2 * hidden], the embedding's columns first.
    """

    model: Any
    norms: dict[str, torch.Tensor]
    join: torch.Tensor

    @property
    def layers(self) -> int:
        """Of the model itself."""
        return len(self.model.model.layers) - 1

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Of the token after the next, for all tokens but the last: float32 [n - 1, vocabulary]."""
        model, epsilon = self.model, self.model.config.rms_norm_eps
        inputs = torch.tensor([token_ids])

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return torch.rms_norm(x, x.shape[-1:], self.norms[name], epsilon)

        with torch.no_grad():
            hidden = model.model(inputs).last_hidden_state[:, :-1]
            embedded = model.model.embed_tokens(inputs[:, 1:])
            both = torch.cat([norm(embedded, "enorm"), norm(hidden, "hnorm")], dim=-1)
            tail = copy.deepcopy(model)
            tail.model.layers = tail.model.layers[-1:]
            tail.config.num_hidden_layers = 1
            tail.model.norm.weight.copy_(self.norms["shared_head.norm"])
            found = tail(inputs_embeds=both @ self.join.T, use_cache=False).logits
        predicted: np.ndarray = found[0].float().numpy()
        return predicted

    def write(self, folder: Path) -> Path:
        """Save it as published, with copies of embedding and head beside the layer."""
        model, layers = self.model, self.layers
        model.config.num_hidden_layers += 1
        model.save_pretrained(folder, max_shard_size="10GB")
        model.config.num_hidden_layers -= 1
        path = folder / "model.safetensors"
        stem = f"model.layers.{layers}"
        tensors = {
            **load_file(path),
            **{f"{stem}.{name}.weight": value.clone() for name, value in self.norms.items()},
            f"{stem}.eh_proj.weight": self.join.clone(),
            f"{stem}.embed_tokens.weight": model.model.embed_tokens.weight.detach().clone(),
            f"{stem}.shared_head.head.weight": model.lm_head.weight.detach().clone(),
        }
        save_file(tensors, path, metadata={"format": "pt"})
        changes: dict[str, Any] = {"num_hidden_layers": layers, "num_nextn_predict_layers": 1}
        written = json.loads((folder / "config.json").read_text())
        for key in ("mlp_layer_types", "layer_types"):
            if written.get(key) is not None:
                changes[key] = written[key][:layers]
        rewrite_config(folder, changes)
        return folder


def with_predictor(tiny: TinyModel, seed: int = 5) -> WithPredictor:
    """The model of that kind, all of it random."""
    config = tiny.config()
    config.num_hidden_layers += 1
    for key in ("mlp_layer_types", "layer_types"):
        if getattr(config, key, None) is not None:
            setattr(config, key, [*getattr(config, key), getattr(config, key)[-1]])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = type(tiny.build())(config).eval()
    randomise(model, seed)
    model.config.num_hidden_layers -= 1
    generator = torch.Generator().manual_seed(seed)
    hidden = config.hidden_size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    norms = {name: 1 + 0.3 * normal(hidden) for name in _NORMS}
    return WithPredictor(model, norms, normal(hidden, 2 * hidden) * (2 * hidden) ** -0.5)


def say_what_follows(model: Any, generator: torch.Generator, *others: torch.nn.Module) -> None:
    """Let every block of a model (and of others) add a little to the embedding alone, and let the
    head find the successor of the token whose embedding it sees, in one cycle through the
    vocabulary. For use where torch records no gradients."""
    for module in (model, *others):
        for name, parameter in module.named_parameters():
            if name.endswith(_BLOCKS_END):
                parameter.mul_(0.05)
    embedding = model.model.embed_tokens.weight
    cycle = torch.randperm(len(embedding), generator=generator)
    model.model.norm.weight.fill_(1.0)
    model.lm_head.weight[cycle.roll(-1)] = 0.5 * embedding[cycle]


def with_good_predictor(tiny: TinyModel, *, noise: float = 0.0, seed: int = 5) -> WithPredictor:
    """A model that mostly says what follows each token, and a predictor that knows.

    Args:
        noise: of the predictor's join beside what it should do: more makes it wrong more often.
    """
    made = with_predictor(tiny, seed)
    model = made.model
    generator = torch.Generator().manual_seed(seed)
    hidden = model.config.hidden_size
    with torch.no_grad():
        say_what_follows(model, generator)
        made.norms["enorm"].fill_(1.0)
        made.norms["shared_head.norm"].fill_(1.0)
        made.join[:, :hidden] = torch.eye(hidden)
        made.join[:, hidden:] *= 0.05
        made.join.add_(noise * torch.randn(made.join.shape, generator=generator))
    return made
