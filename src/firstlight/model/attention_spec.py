"""Attention as data: grouped queries, latents, and what selects positions.

`compressed_spec.py` has DeepSeek-V4's.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.part_specs import HeadLinearSpec, LayerNormSpec, LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.tensor_source import TensorSource


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


AttentionSpec = GroupedQuerySpec | LatentAttentionSpec | CompressedAttentionSpec
