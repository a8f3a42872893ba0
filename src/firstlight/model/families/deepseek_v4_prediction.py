"""DeepSeek-V4's layers of multi-token prediction: `mtp.0` and on, as its inference code names them.

The first releases have one, which works as V3's does, on each residual stream. In later ones (the
"DSpark" releases) `mtp` holds a module of another kind, which drafts blocks of tokens from the
states of several layers; its first part projects those (`main_proj`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firstlight.model.compressed_spec import HyperConnectionSpec
from firstlight.model.families.deepseek_v4_names import PUBLISHED
from firstlight.model.families.parts import Parts
from firstlight.model.spec import LayerSpec, PredictorSpec, SumSpec

_MOST = 64
_LAYER, _BEHIND = "layers.{layer}.", "mtp.{layer}."
_NAMES = {
    **{role: name.replace(_LAYER, _BEHIND) for role, name in PUBLISHED.items() if _LAYER in name},
    **{role: f"{_BEHIND}{PUBLISHED[role]}" for role in ("end_mixing", "end_base", "end_scale")},
    "predictor_embedding_norm": f"{_BEHIND}enorm",
    "predictor_hidden_norm": f"{_BEHIND}hnorm",
    "predictor_embedding": f"{_BEHIND}e_proj",
    "predictor_hidden": f"{_BEHIND}h_proj",
    "predictor_final_norm": f"{_BEHIND}norm",
}


@dataclass(frozen=True)
class PredictionLayer:
    """One that the files have; `note` says for people what becomes of it."""

    used: bool
    note: str


def prediction_layers(parts: Parts) -> tuple[PredictionLayer, ...]:
    """Those that the files have, the first in front."""
    count = parts.config.integer("num_nextn_predict_layers", 0, least=0, most=_MOST)
    names = parts.files.tensors
    found: list[PredictionLayer] = []
    for stem in ("mtp", "model.mtp"):
        for index in range(count):
            prefix = f"{stem}.{index}"
            if not any(name.startswith(f"{prefix}.") for name in names):
                continue
            kind, use = "a layer of multi-token prediction", "is left out"
            drafts = any(name.startswith(f"{stem}.0.main_proj.") for name in names)
            used = not found and stem == "mtp" and index == 0 and not drafts
            if drafts:
                kind = "a part of a module that drafts blocks of tokens"
            elif used:
                use = "is used with --speculate mtp only"
            found.append(PredictionLayer(used, f"{prefix}, {kind}, {use}"))
    return tuple(found)


def predictor_parts(parts: Parts) -> Parts:
    """The checkpoint as if the first of them were its only layer.

    Its experts are chosen by score, and its attention is of the kind that the config has for it
    (`compress_ratios`, the entry behind those of the layers): in all releases a window alone.
    """
    config, layers = parts.config, parts.layers
    ratio = 0
    if not config.has("layer_types") and len(config.values["compress_ratios"]) > layers:
        ratio = config.integers("compress_ratios", layers + 1)[layers]
    own: dict[str, Any] = {"compress_ratios": [ratio]}
    if config.has("layer_types"):
        own = {"layer_types": ["sliding_attention"]}
    inner = parts.with_values(num_hidden_layers=1, mlp_layer_types=["moe"], **own)
    return inner.rename_whole(**_NAMES)


def predictor_spec(inner: Parts, layer: LayerSpec, end: HyperConnectionSpec) -> PredictorSpec:
    """The first of them, made of `predictor_parts`.

    As in DeepSeek's inference code: every stream of a position's hidden state, before these are
    joined, is normed and goes through one matrix, and the normed embedding of the token that
    follows goes through another and is added to each. The layer's streams then are joined, normed
    and multiplied as at the model's end, by tensors of its own; embedding and head are the model's.
    """
    hidden = inner.hidden_size
    return PredictorSpec(
        embedding_norm=inner.norm("predictor_embedding_norm", hidden, 0),
        hidden_norm=inner.norm("predictor_hidden_norm", hidden, 0),
        join=SumSpec(
            inner.linear("predictor_embedding", hidden, hidden, 0),
            inner.linear("predictor_hidden", hidden, hidden, 0),
        ),
        layer=layer,
        final_norm=inner.norm("predictor_final_norm", hidden, 0),
        connection=end,
    )
