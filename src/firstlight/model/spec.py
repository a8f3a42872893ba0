"""What a model is, as data: everything the decoder needs to know, and where each tensor lies.

A family (one file in `families/`) makes a `ModelSpec` from a checkpoint's config and tensor names.
Nothing else in firstlight knows one model from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from math import prod
from typing import Any

from firstlight.model.attention_spec import AttentionSpec
from firstlight.model.compressed_spec import HyperConnectionSpec
from firstlight.model.feed_forward_spec import ExpertsSpec, FeedForwardSpec
from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.tensor_source import TensorSource


@dataclass(frozen=True)
class ResidualSpec:
    """How a block joins the residual stream: x + scale * post_norm(block(pre_norm(x))).

    Attributes:
        connection: where there are several streams: what of them is x, and how the block's result
            joins them (its scale is then one).
        partial: what the block gives is one rank's part of a sum, which is normed and joined when
            it is whole (`model/residual.py`).
    """

    pre_norm: NormSpec | None
    post_norm: NormSpec | None = None
    scale: float = 1.0
    connection: HyperConnectionSpec | None = None
    partial: bool = False

    @property
    def joining_scale(self) -> float | None:
        """The factor of what joins the stream; None: a connection joins it."""
        return self.scale if self.connection is None else None

    @property
    def block_scale(self) -> float | None:
        """The factor with which a block itself joins the stream; None: something else joins it."""
        return None if self.partial else self.joining_scale

    @property
    def block_norm(self) -> NormSpec | None:
        """The norm of a block's result that is the block's own."""
        return None if self.partial else self.post_norm


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention, then feed-forward, each joined to the residual stream."""

    attention: AttentionSpec
    attention_residual: ResidualSpec
    feed_forward: FeedForwardSpec
    feed_forward_residual: ResidualSpec


@dataclass(frozen=True)
class SumSpec:
    """A product of an embedding plus one of a hidden state, each [hidden_size, hidden_size]."""

    embedding: LinearSpec
    hidden: LinearSpec


@dataclass(frozen=True)
class PredictorSpec:
    """A layer behind the last that predicts the token after the next: multi-token prediction
    (DeepSeek-V3, arXiv:2412.19437, section 2.2, equations 21 to 23).

    Of a position's last hidden state h and the embedding e of the token that follows it, the layer
    sees join([embedding_norm(e), hidden_norm(h)]). It has state of its own, and the model's
    embedding and head. Where there are several residual streams (DeepSeek-V4), h is each of them by
    itself, and what the layer sees and makes is as many.

    Attributes:
        join: [hidden_size, 2 * hidden_size]; with several streams a sum.
        final_norm: before the head.
        connection: how the layer's streams become one before that norm; None: there is one.
    """

    embedding_norm: NormSpec
    hidden_norm: NormSpec
    join: LinearSpec | SumSpec
    layer: LayerSpec
    final_norm: NormSpec
    connection: HyperConnectionSpec | None = None


@dataclass(frozen=True)
class ModelPart:
    """What one of several ranks has of a model.

    Attributes:
        rank, ranks: this one's number, and how many there are.
        vocabulary: of the rows of embedding and head, where those of each rank begin, and the end.
    """

    rank: int
    ranks: int
    vocabulary: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder-only model.

    Attributes:
        family: name of the family that made this spec.
        context_length: longest sequence, in tokens, that the model was made for.
        embedding: [vocabulary_size, hidden_size].
        head: [vocabulary_size, hidden_size]; equal to `embedding` where they are tied.
        embedding_scale, logit_scale: factors of the embedding and of the logits.
        logit_soft_cap: logits become cap * tanh(logits / cap); None: not.
        connection: how several residual streams become one before the final norm; None: there is
            one throughout.
        notes: what of the checkpoint is left out, a sentence each, for people.
        predictor: what guesses tokens ahead; None: nothing, or it is not wanted.
        part: which part of the model this is, where several ranks compute it together; None: it is
            whole.
    """

    family: str
    vocabulary_size: int
    hidden_size: int
    context_length: int
    embedding: TensorSource
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    head: LinearSpec
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    connection: HyperConnectionSpec | None = None
    notes: tuple[str, ...] = ()
    predictor: PredictorSpec | None = None
    part: ModelPart | None = None

    @property
    def all_layers(self) -> tuple[LayerSpec, ...]:
        """Every layer that has state: the model's, and then its predictor's."""
        return self.layers if self.predictor is None else (*self.layers, self.predictor.layer)

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding table."""
        return self.head.weight == self.embedding

    @property
    def residual_streams(self) -> int:
        """How many residual streams a token has."""
        return 1 if self.connection is None else self.connection.streams

    def sources(self) -> tuple[TensorSource, ...]:
        """Every tensor of the model, each once, in the order of use."""
        return self._sources

    @cached_property
    def _sources(self) -> tuple[TensorSource, ...]:
        return tuple(dict.fromkeys(_walk(self)))

    def expert_shares(self) -> dict[TensorSource, float]:
        """Tensor of a routed expert -> the share of tokens that go to it, if they go to all alike.
        Every token needs the tensors that are not there."""
        return {
            source: layer.feed_forward.share
            for layer in self.all_layers
            if isinstance(layer.feed_forward, ExpertsSpec)
            for source in _walk(layer.feed_forward.experts)
        }

    def active_parameters(self) -> int:
        """Values of the tensors that one token goes through, the embedding table counted whole."""
        shares = self.expert_shares()
        return round(sum(prod(each.shape) * shares.get(each, 1.0) for each in self.sources()))

    def ropes(self) -> tuple[RopeSpec, ...]:
        """Every distinct rotary embedding among the layers."""
        found = (layer.attention.rope for layer in self.all_layers)
        return tuple(dict.fromkeys(rope for rope in found if rope is not None))


def _walk(part: Any) -> Iterator[TensorSource]:
    if isinstance(part, TensorSource):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from _walk(item)
    elif is_dataclass(part):
        for name in _field_names(part.__class__):
            yield from _walk(getattr(part, name))


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    """Of a dataclass; there may be 100,000 of them in a mixture of experts."""
    return tuple(field.name for field in fields(kind))
