"""What a model is, as data: everything the decoder needs to know, and where each tensor lies.

A family (one file in `families/`) makes a `ModelSpec` from a checkpoint's config and tensor names.
Nothing else in firstlight knows one model from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from math import prod
from typing import Any

from firstlight.model.compressed_spec import (
    CompressedAttentionSpec,
    HyperConnectionSpec,
)
from firstlight.model.rope_spec import RopeSpec
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import Gating
from firstlight.ops.routing import Routing


@dataclass(frozen=True)
class Stack:
    """Which of the matrices (or vectors) in a tensor with one more axis in front.

    Attributes:
        index, count: this one's number, and how many there are.
        transposed: each is stored [columns, rows].
    """

    index: int
    count: int
    transposed: bool = False


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor of the model comes from.

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: what the model needs; the checkpoint's tensor has this shape, but for its rows where
            it is fused with others.
        first_row: where this part starts in a fused tensor; None: not fused.
        fused_rows: rows of the fused tensor.
        offset: added to every value on loading (Gemma stores norm weights less one).
        row_step: rows between one row of this part and the next, where a fused tensor has the rows
            of its parts in turn.
        stack: which of the tensors that are stacked in one; None: it is one by itself. What is said
            of rows holds within that one.
        scales: name of a second tensor, of the scales of blocks. Then `name` holds 4-bit codes: it
            is mxfp4 as safetensors hold it (see `formats/mxfp4_pair.py`), by blocks or by rows.
        kept: name of the storage format that it is kept in whatever the others are converted to;
            None: as the others.
        integers: it holds whole numbers that are no weights.
        folded: rows of the tensor lie on two axes, the first this long.
        first_column: where this part's columns start in those of the tensor; None: it has all.
        all_columns: columns of the tensor, where this has a part of them.
    """

    name: str
    shape: tuple[int, ...]
    first_row: int | None = None
    fused_rows: int | None = None
    offset: float = 0.0
    row_step: int = 1
    stack: Stack | None = None
    scales: str | None = None
    kept: str | None = None
    integers: bool = False
    folded: int | None = None
    first_column: int | None = None
    all_columns: int | None = None

    @property
    def with_all_columns(self) -> TensorSource:
        """The same rows, whole."""
        if self.first_column is None:
            return self
        shape = (*self.shape[:-1], self.all_columns or self.shape[-1])
        return replace(self, shape=shape, first_column=None, all_columns=None)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor; of values, where these have scales of their own."""
        if self.first_column is not None:
            return self.with_all_columns.stored_shape
        rows = self.shape[0] if self.fused_rows is None else self.fused_rows
        shape = (rows, *self.shape[1:])
        if self.folded is not None:
            return (self.folded, rows // self.folded, *self.shape[1:])
        if self.stack is None:
            return shape
        return (self.stack.count, *(shape[::-1] if self.stack.transposed else shape))


@dataclass(frozen=True)
class LinearSpec:
    """A product with a weight [rows, columns], and a bias [rows] or none."""

    weight: TensorSource
    bias: TensorSource | None = None


@dataclass(frozen=True)
class NormSpec:
    """Root mean square norm over the last `size` values; without a weight where it is None."""

    size: int
    epsilon: float
    weight: TensorSource | None


@dataclass(frozen=True)
class LayerNormSpec:
    """Layer norm over the last `size` values, as the op `layer_norm`."""

    size: int
    epsilon: float
    weight: TensorSource
    bias: TensorSource


@dataclass(frozen=True)
class GroupedQuerySpec:
    """Multi-head, grouped-query or multi-query attention, full or sliding.

    Attributes:
        query_norm, key_norm: of size `head_size` (each head by itself) or of the whole
            projection; None: not normed.
        scale: factor of the scores.
        window: a position sees the last `window` positions, itself included; None: all.
        soft_cap: of the scores; None: not capped.
        rope: None for a layer without position embedding.
        sinks: [heads]: a score of nothing, for each head (see `attention_with_sinks`); None: not.
    """

    heads: int
    key_value_heads: int
    head_size: int
    query: LinearSpec
    key: LinearSpec
    value: LinearSpec
    output: LinearSpec
    scale: float
    rope: RopeSpec | None
    query_norm: NormSpec | None = None
    key_norm: NormSpec | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: TensorSource | None = None


@dataclass(frozen=True)
class HeadLinearSpec:
    """A product of each head with a part of a weight's rows of its own, as the op `head_linear`.

    Attributes:
        weight: [heads * rows of a head, columns].
        first, size: the rows of each head that are meant.
        transposed: `size` values become `columns`, not the other way round.
    """

    weight: TensorSource
    first: int
    size: int
    transposed: bool = False


@dataclass(frozen=True)
class IndexerSpec:
    """What selects the positions that latent attention sees (the "lightning indexer" of
    DeepSeek-V3.2, arXiv:2512.02556, section 2.1); see the op `sparse_latent_attention_block`.

    State is one key of `head_size` values a token. Of queries and keys the first values turn, as
    many as the attention turns, by the same angles.

    Attributes:
        top_k: so many positions a row sees; those with the largest scores.
        query: [heads * head_size, low rank of the attention's query].
        key: [head_size, hidden_size].
        weights: [heads, hidden_size].
        interleaved: as in `RopeSpec`, and not that of the attention.
    """

    heads: int
    head_size: int
    top_k: int
    query: LinearSpec
    key: LinearSpec
    key_norm: LayerNormSpec
    weights: LinearSpec
    interleaved: bool = False


@dataclass(frozen=True)
class LatentAttentionSpec:
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).

    State is one latent of `latent_size` values and one rotary key of `rope.size` values a token,
    which all heads share; see the op `latent_attention_block` for the equations.

    Attributes:
        latent_size: of the compressed keys and values (the paper's d_c, "kv_lora_rank").
        plain_size: values of a head's query and key that do not turn ("qk_nope_head_dim").
        value_size: values of a head's result ("v_head_dim").
        query_down, query_down_norm: the low-rank query's first product and its norm; None: the
            query is a product of the stream itself.
        query: [heads * (plain_size + rope.size), columns]; in each head the turned values last.
        latent: [latent_size + rope.size, hidden_size].
        key_up: from a head's plain query to the latent.
        value_up: from the latent to a head's value.
        scale: factor of the scores, YaRN's share of it included.
        indexer: what selects positions; None: all are seen.
    """

    heads: int
    latent_size: int
    plain_size: int
    value_size: int
    query_down: LinearSpec | None
    query_down_norm: NormSpec | None
    query: LinearSpec
    latent: LinearSpec
    latent_norm: NormSpec
    key_up: HeadLinearSpec
    value_up: HeadLinearSpec
    output: LinearSpec
    scale: float
    rope: RopeSpec
    indexer: IndexerSpec | None = None

    @property
    def entry_size(self) -> int:
        """Values of a token's latent and turned key."""
        return self.latent_size + self.rope.size

    @property
    def window(self) -> int | None:
        """None: all positions before it are kept, and with an indexer any may be seen."""
        return None


@dataclass(frozen=True)
class GatedFeedForwardSpec:
    """down(activation(gate(x)) * up(x))."""

    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec
    activation: Activation

    @property
    def width(self) -> int:
        """Intermediate values of a token."""
        return self.up.weight.shape[0]


@dataclass(frozen=True)
class ExpertSpec:
    """down(gating(gate(x), up(x))); the gating is that of all experts of a layer."""

    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec


@dataclass(frozen=True)
class RoutingSpec:
    """Which experts a token goes to.

    Attributes:
        router: product [n, hidden_size] -> [n, experts].
        numbers: what is made of its results; see `route`.
        correction: [experts], added to scores for the choice alone; None: nothing.
        hash_table: whole numbers [vocabulary_size, top_k]: the experts of each token id, instead of
            a choice by score (DeepSeek-V4's first layers); None: by score.
    """

    router: LinearSpec
    numbers: Routing
    correction: TensorSource | None = None
    hash_table: TensorSource | None = None


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts; the formula is that of `experts_block`.

    Attributes:
        experts: all of one size.
        gating: what joins gate and up, of the shared expert too.
        shared: an expert that every token goes to (several are one that is as wide as they are
            together); None: there is none.
        shared_gate: product [n, hidden_size] -> [n, 1], whose sigmoid weighs the shared expert.
        weighted_before: a weight is the factor of what goes into an expert, not of its result.
        first: number of the first of `experts` among those that the router knows, where it is one
            rank that has these and others have the rest.
    """

    routing: RoutingSpec
    experts: tuple[ExpertSpec, ...]
    gating: Gating
    shared: ExpertSpec | None = None
    shared_gate: LinearSpec | None = None
    weighted_before: bool = False
    first: int = 0

    @property
    def count(self) -> int:
        """Experts that the router knows, on all ranks."""
        return self.routing.router.weight.shape[0]

    @property
    def width(self) -> int:
        """Intermediate values of a token, in all the experts that it goes to."""
        each = self.experts[0].up.weight.shape[0] * self.routing.numbers.top_k
        shared = 0 if self.shared is None else self.shared.up.weight.shape[0]
        return each + shared + len(self.experts)

    @property
    def share(self) -> float:
        """Of its experts, those that a token goes to."""
        return self.routing.numbers.top_k / self.count


AttentionSpec = GroupedQuerySpec | LatentAttentionSpec | CompressedAttentionSpec
FeedForwardSpec = GatedFeedForwardSpec | ExpertsSpec


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
