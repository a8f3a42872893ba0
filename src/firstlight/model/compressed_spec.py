"""What DeepSeek-V4 adds to specs: attention over compressed entries, and hyper-connections."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.tensor_source import TensorSource


@dataclass(frozen=True)
class CompressorSpec:
    """One entry of every run of `stride` tokens (DeepSeek-V4's report, section 2.3).

    Attributes:
        value, gate: products of the normed stream; where runs overlap, twice as wide: first what a
            token gives to the next run's entry, then what it gives to its own.
        bias: [stride, width], added to the gates by place in the run.
        norm: of an entry.
        overlapping: an entry is made of the run before as well.
    """

    stride: int
    value: LinearSpec
    gate: LinearSpec
    bias: TensorSource
    norm: NormSpec
    overlapping: bool

    @property
    def entry_size(self) -> int:
        """Values of an entry."""
        return self.norm.size


@dataclass(frozen=True)
class IndexerSpec:
    """Which entries a token attends to; see the op `select_entries`.

    Attributes:
        query: of the low-rank query, [heads * entry size, columns].
        weights: of the normed stream, [heads, hidden_size].
        keys: the entries that are scored; of the same runs as those attended to.
    """

    heads: int
    top_k: int
    query: LinearSpec
    weights: LinearSpec
    keys: CompressorSpec


@dataclass(frozen=True)
class CompressedAttentionSpec:
    """Multi-query attention whose keys are its values, over a window and entries of earlier runs.

    DeepSeek-V4's report, section 2.3. A head's last `rope.size` values turn; since values are keys
    and so have been turned, the result is turned back by the row's own position.

    Attributes:
        head_norm: of each head's query by itself.
        key: [head_size, hidden_size].
        output_down: of `groups` groups of heads, each by rows of its own: [groups * rank, heads *
            head_size / groups].
        scale: factor of the scores.
        near: a position sees the keys of the last `near` positions, itself included.
        sinks: [heads]; see `attention_with_sinks`.
        compressor: None: the layer sees its window alone.
        indexer: None: a position sees the entries of all runs.
    """

    heads: int
    head_size: int
    query_down: LinearSpec
    query_down_norm: NormSpec
    query: LinearSpec
    head_norm: NormSpec
    key: LinearSpec
    key_norm: NormSpec
    groups: int
    output_down: TensorSource
    output: LinearSpec
    scale: float
    rope: RopeSpec
    near: int
    sinks: TensorSource
    compressor: CompressorSpec | None = None
    indexer: IndexerSpec | None = None

    @property
    def window(self) -> int | None:
        """None: a position sees all before it, if only as entries."""
        return self.near if self.compressor is None else None

    @property
    def key_value_heads(self) -> int:
        """All heads share one key, which is their value."""
        return 1


@dataclass(frozen=True)
class HyperConnectionSpec:
    """How a block is connected to several residual streams; see `ops/hyper_connections.py`.

    Attributes:
        streams: how many.
        mixing: of all streams of a token side by side, normed: [weights, streams * hidden_size].
        base: [weights].
        scale: [3], or [1] at the model's end.
        iterations, epsilon: as in `ConnectionNumbers`.
        norm_epsilon: of the norm before `mixing`.
    """

    streams: int
    mixing: LinearSpec
    base: TensorSource
    scale: TensorSource
    iterations: int
    epsilon: float
    norm_epsilon: float
