"""What a model is, as data: everything the decoder needs to know, and where each tensor lies.

A family (one file in `families/`) makes a `ModelSpec` from a checkpoint's config and tensor names.
Nothing else in firstlight knows one model from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from firstlight.ops.elementwise import Activation


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
    """

    name: str
    shape: tuple[int, ...]
    first_row: int | None = None
    fused_rows: int | None = None
    offset: float = 0.0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor."""
        return self.shape if self.fused_rows is None else (self.fused_rows, *self.shape[1:])


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
class LinearScaling:
    """Positions divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Base frequency that grows with the sequence's length past `original_length` ("dynamic NTK").

    The length is the longer of the prompt and the position's own: see `model.rope`.
    """

    factor: float
    original_length: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), equations 17 to 25.

    Attributes:
        magnitude: factor of cosines and sines; 0.1 * ln(factor) + 1 unless the config says.
        truncate: round the correction range to whole dimensions.
    """

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    magnitude: float
    truncate: bool = True


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling by wavelength (Grattafiori et al. 2024, arXiv:2407.21783)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a factor for each frequency.

    `short_factors` serve while a sequence is at most `original_length` long, `long_factors` for
    the whole sequence as soon as it is longer.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    magnitude: float


@dataclass(frozen=True)
class FactorScaling:
    """Each frequency divided by a factor that the checkpoint lists (GGUF's `rope_freqs`)."""

    factors: tuple[float, ...]


RopeScaling = (
    LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling | FactorScaling
)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding of one layer (Su et al. 2021, arXiv:2104.09864).

    Attributes:
        size: how many of a head's values turn; fewer than all where rotation is partial.
        theta: base of the frequencies theta ** (-2i / size).
        scaling: how frequencies are changed for longer contexts; None: not.
        interleaved: pairs are neighbours (2i, 2i + 1) instead of (i, i + size / 2).
    """

    size: int
    theta: float
    scaling: RopeScaling | None = None
    interleaved: bool = False


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

    @property
    def entry_size(self) -> int:
        """Values that state keeps of a token."""
        return self.latent_size + self.rope.size

    @property
    def window(self) -> int | None:
        """None: a position sees all before it."""
        return None


@dataclass(frozen=True)
class GatedFeedForwardSpec:
    """down(activation(gate(x)) * up(x))."""

    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec
    activation: Activation


AttentionSpec = GroupedQuerySpec | LatentAttentionSpec
FeedForwardSpec = GatedFeedForwardSpec


@dataclass(frozen=True)
class ResidualSpec:
    """How a block joins the residual stream: x + scale * post_norm(block(pre_norm(x)))."""

    pre_norm: NormSpec | None
    post_norm: NormSpec | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class LayerSpec:
    """One layer: attention, then feed-forward, each joined to the residual stream."""

    attention: AttentionSpec
    attention_residual: ResidualSpec
    feed_forward: FeedForwardSpec
    feed_forward_residual: ResidualSpec


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
        notes: what of the checkpoint is left out, a sentence each, for people.
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
    notes: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding table."""
        return self.head.weight == self.embedding

    def sources(self) -> tuple[TensorSource, ...]:
        """Every tensor of the model, each once, in the order of use."""
        return tuple(dict.fromkeys(_walk(self)))

    def ropes(self) -> tuple[RopeSpec, ...]:
        """Every distinct rotary embedding among the layers."""
        found = (layer.attention.rope for layer in self.layers)
        return tuple(dict.fromkeys(rope for rope in found if rope is not None))


def _walk(part: Any) -> Iterator[TensorSource]:
    if isinstance(part, TensorSource):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from _walk(item)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _walk(getattr(part, field.name))
