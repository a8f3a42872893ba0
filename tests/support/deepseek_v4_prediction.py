"""Tiny DeepSeek-V4s with a layer of multi-token prediction, and what it predicts, put together from
transformers' parts; the V4 half of `prediction_layers`."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.deepseek_v4_files import published_name
from tests.support.prediction_layers import say_what_follows
from tests.support.tiny_checkpoints import randomise, rewrite_config
from tests.support.tiny_models import TinyModel


@dataclass(frozen=True)
class WithStreamsPredictor:
    """A model of transformers, and the predictor's parts beside it.

    Attributes:
        layer: the predictor's, of transformers' kind.
        parts: what else it has, by the last part of its published name.
    """

    model: Any
    layer: Any
    parts: dict[str, torch.Tensor]

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Of the token after the next, for all tokens but the last: float32 [n - 1, vocabulary]."""
        model, parts = self.model, self.parts
        epsilon = model.config.rms_norm_eps
        inputs = torch.tensor([token_ids])
        seen: list[torch.Tensor] = []
        watch = model.model.layers[-1].register_forward_hook(lambda *each: seen.append(each[2]))
        with torch.no_grad():
            model.model(inputs, use_cache=False)
            watch.remove()
            embedded = model.model.embed_tokens(inputs[:, 1:])
            embedded = torch.rms_norm(embedded, embedded.shape[-1:], parts["enorm.weight"], epsilon)
            streams = seen[0][:, :-1]
            streams = torch.rms_norm(streams, streams.shape[-1:], parts["hnorm.weight"], epsilon)
            both = (embedded @ parts["e_proj.weight"].T)[:, :, None]
            both = both + streams @ parts["h_proj.weight"].T
            tail = copy.deepcopy(model)
            tail.model.layers = torch.nn.ModuleList([_Instead(both, self.layer)])
            tail.config.num_hidden_layers = 1
            tail.model.norm.weight.copy_(parts["norm.weight"])
            for name in ("fn", "base", "scale"):
                getattr(tail.model.hc_head, f"hc_{name}").copy_(parts[f"hc_head_{name}"])
            found = tail(inputs[:, 1:], use_cache=False).logits
        predicted: np.ndarray = found[0].float().numpy()
        return predicted

    def write(self, folder: Path) -> Path:
        """Save it under published names, with a copy of the embedding beside the layer."""
        model = self.model
        layers = len(model.model.layers)
        model.model.layers.append(self.layer)
        model.config.num_hidden_layers += 1
        model.save_pretrained(folder, max_shard_size="10GB")
        del model.model.layers[-1]
        model.config.num_hidden_layers -= 1
        path = folder / "model.safetensors"
        tensors = {published_name(name): value for name, value in load_file(path).items()}
        tensors = {
            name.replace(f"layers.{layers}.", "mtp.0."): value for name, value in tensors.items()
        }
        tensors |= {f"mtp.0.{name}": value.contiguous() for name, value in self.parts.items()}
        tensors["mtp.0.embed.weight"] = tensors["embed.weight"].clone()
        save_file(tensors, path, metadata={"format": "pt"})
        written = json.loads((folder / "config.json").read_text())
        changes: dict[str, Any] = {"num_hidden_layers": layers, "num_nextn_predict_layers": 1}
        changes |= {key: written[key][:layers] for key in ("layer_types", "mlp_layer_types")}
        rewrite_config(folder, changes)
        return folder


class _Instead(torch.nn.Module):
    """A layer that sees other streams than it is given."""

    def __init__(self, streams: torch.Tensor, layer: Any) -> None:
        super().__init__()
        self._streams = streams
        self._layer = layer

    def forward(self, _: torch.Tensor, **options: Any) -> Any:
        return self._layer(self._streams, **options)


def with_streams_predictor(tiny: TinyModel, seed: int) -> WithStreamsPredictor:
    """The model of that kind, all of it random."""
    config = tiny.config()
    config.num_hidden_layers += 1
    config.layer_types = [*config.layer_types, "sliding_attention"]
    config.mlp_layer_types = [*config.mlp_layer_types, "moe"]
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = type(tiny.build())(config).eval()
    randomise(model, seed)
    layer = model.model.layers[-1]
    del model.model.layers[-1]
    config.num_hidden_layers -= 1
    generator = torch.Generator().manual_seed(seed)
    hidden, streams = config.hidden_size, config.hc_mult

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    parts = {f"{name}.weight": 1 + 0.3 * normal(hidden) for name in ("enorm", "hnorm", "norm")}
    for name in ("e_proj", "h_proj"):
        parts[f"{name}.weight"] = normal(hidden, hidden) * (2 * hidden) ** -0.5
    parts["hc_head_fn"] = normal(streams, streams * hidden) * (streams * hidden) ** -0.5
    parts["hc_head_base"], parts["hc_head_scale"] = normal(streams), normal(1)
    return WithStreamsPredictor(model, layer, parts)


def with_good_streams_predictor(
    tiny: TinyModel, *, noise: float, seed: int
) -> WithStreamsPredictor:
    """As `prediction_layers.with_good_predictor`."""
    made = with_streams_predictor(tiny, seed)
    model = made.model
    generator = torch.Generator().manual_seed(seed)
    hidden = model.config.hidden_size
    with torch.no_grad():
        say_what_follows(model, generator, made.layer)
        made.parts["enorm.weight"].fill_(1.0)
        made.parts["norm.weight"].fill_(1.0)
        made.parts["h_proj.weight"].mul_(0.05)
        made.parts["e_proj.weight"].copy_(torch.eye(hidden))
        for name in ("e_proj.weight", "h_proj.weight"):
            made.parts[name].add_(noise * torch.randn((hidden, hidden), generator=generator))
    return made
