"""Layers of multi-token prediction, which are stored behind a model's last layer."""

from __future__ import annotations

from firstlight.model.families.parts import Parts
from firstlight.model.spec import LayerSpec, PredictorSpec

_MOST = 64


def prediction_layers(parts: Parts) -> tuple[int, ...]:
    """The numbers of those that the files have."""
    newer = parts.config.integer("num_mtp_layers", 0, least=0, most=_MOST)
    count = parts.config.integer("num_nextn_predict_layers", newer, least=0, most=_MOST)
    behind = range(parts.layers, parts.layers + count)
    stems = {index: f"{_stem(parts, index)}." for index in behind}
    found = {
        index
        for index, stem in stems.items()
        if any(name.startswith(stem) for name in parts.files.tensors)
    }
    return tuple(sorted(found))


def predictor_spec(parts: Parts, layer: LayerSpec) -> PredictorSpec:
    """The first of them; `layer` is what every layer has.

    DeepSeek-V3 (arXiv:2412.19437), equation 21, joins hidden state and embedding in this order; the
    published `eh_proj` has the embedding's columns first, as its name says. Embedding and head are
    the model's own (section 2.2), and the copies of them among the files are not read.
    """
    hidden, index = parts.hidden_size, parts.layers
    return PredictorSpec(
        embedding_norm=parts.norm("predictor_embedding_norm", hidden, index),
        hidden_norm=parts.norm("predictor_hidden_norm", hidden, index),
        join=parts.linear("predictor_join", hidden, 2 * hidden, index),
        layer=layer,
        final_norm=parts.norm("predictor_final_norm", hidden, index),
    )


def notes_on(parts: Parts, found: tuple[int, ...]) -> tuple[str, ...]:
    """What becomes of them, for people."""
    first = "is left out" if parts.gguf else "is used with --speculate mtp only"
    uses = [first] + ["is left out"] * max(0, len(found) - 1)
    return tuple(
        f"{_stem(parts, index)}, a layer of multi-token prediction, {use}"
        for index, use in zip(found, uses, strict=False)
    )


def _stem(parts: Parts, index: int) -> str:
    return parts.tensor_name("attention_norm", index).rpartition(".")[0]
