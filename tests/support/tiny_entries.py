"""Tiny models whose attention sees chosen or compressed entries, made of specs and random weights.

Their runs, windows and choices are of a few positions, so that short sequences cross many borders.
"""

from __future__ import annotations

from firstlight.model.attention_spec import AttentionSpec, IndexerSpec, LatentAttentionSpec
from firstlight.model.compressed_spec import CompressedAttentionSpec, CompressorSpec
from firstlight.model.compressed_spec import IndexerSpec as RunIndexerSpec
from firstlight.model.feed_forward_spec import GatedFeedForwardSpec
from firstlight.model.part_specs import HeadLinearSpec, LayerNormSpec, LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import LayerSpec, ModelSpec, ResidualSpec
from firstlight.model.tensor_source import TensorSource
from tests.support.tiny_engine import CONTEXT_LENGTH, VOCABULARY

_HIDDEN, _HEADS, _SIZE, _LOW, _WIDTH = 24, 4, 8, 12, 40
_TURNED = 4


def selecting_spec(top_k: int = 5) -> ModelSpec:
    """As DeepSeek-V3.2: latent attention over the positions that an indexer selects."""
    return _model([_selecting(index, top_k) for index in range(2)])


def compressed_spec(top_k: int = 3) -> ModelSpec:
    """As DeepSeek-V4: a layer that slides, one that sees all runs, one that sees chosen ones."""
    return _model(
        [
            _compressed(0, None, None),
            _compressed(1, _compressor("1.heavy", 8, _SIZE, False), None),
            _compressed(2, _compressor("2.sparse", 4, _SIZE, True), _run_indexer("2.index", top_k)),
        ]
    )


def _model(kinds: list[AttentionSpec]) -> ModelSpec:
    return ModelSpec(
        family="tiny",
        vocabulary_size=VOCABULARY,
        hidden_size=_HIDDEN,
        context_length=CONTEXT_LENGTH,
        embedding=TensorSource("embedding", (VOCABULARY, _HIDDEN)),
        layers=tuple(_layer(index, kind) for index, kind in enumerate(kinds)),
        final_norm=_norm("norm", _HIDDEN),
        head=_linear("head", VOCABULARY, _HIDDEN),
    )


def _layer(index: int, attention: AttentionSpec) -> LayerSpec:
    feed_forward = GatedFeedForwardSpec(
        gate=_linear(f"{index}.gate", _WIDTH, _HIDDEN),
        up=_linear(f"{index}.up", _WIDTH, _HIDDEN),
        down=_linear(f"{index}.down", _HIDDEN, _WIDTH),
        activation="silu",
    )
    before = ResidualSpec(pre_norm=_norm(f"{index}.attention_norm", _HIDDEN))
    between = ResidualSpec(pre_norm=_norm(f"{index}.feed_forward_norm", _HIDDEN))
    return LayerSpec(attention, before, feed_forward, between)


def _linear(name: str, rows: int, columns: int) -> LinearSpec:
    return LinearSpec(TensorSource(name, (rows, columns)))


def _norm(name: str, size: int) -> NormSpec:
    return NormSpec(size, 1e-6, TensorSource(name, (size,)))


def _selecting(index: int, top_k: int) -> LatentAttentionSpec:
    latent, value, index_size = 16, 8, 8
    ups = TensorSource(f"{index}.ups", (_HEADS * (_SIZE + value), latent))
    key_norm = LayerNormSpec(
        index_size,
        1e-6,
        TensorSource(f"{index}.index_norm", (index_size,)),
        TensorSource(f"{index}.index_norm_bias", (index_size,)),
    )
    return LatentAttentionSpec(
        heads=_HEADS,
        latent_size=latent,
        plain_size=_SIZE,
        value_size=value,
        query_down=_linear(f"{index}.query_down", _LOW, _HIDDEN),
        query_down_norm=_norm(f"{index}.query_norm", _LOW),
        query=_linear(f"{index}.query", _HEADS * (_SIZE + _TURNED), _LOW),
        latent=_linear(f"{index}.latent", latent + _TURNED, _HIDDEN),
        latent_norm=_norm(f"{index}.latent_norm", latent),
        key_up=HeadLinearSpec(ups, 0, _SIZE, True),
        value_up=HeadLinearSpec(ups, _SIZE, value),
        output=_linear(f"{index}.output", _HIDDEN, _HEADS * value),
        scale=(_SIZE + _TURNED) ** -0.5,
        rope=RopeSpec(_TURNED, 10_000.0),
        indexer=IndexerSpec(
            heads=3,
            head_size=index_size,
            top_k=top_k,
            query=_linear(f"{index}.index_query", 3 * index_size, _LOW),
            key=_linear(f"{index}.index_key", index_size, _HIDDEN),
            key_norm=key_norm,
            weights=_linear(f"{index}.index_weights", 3, _HIDDEN),
        ),
    )


def _compressed(
    index: int, compressor: CompressorSpec | None, indexer: RunIndexerSpec | None
) -> CompressedAttentionSpec:
    groups, rank = 2, 6
    return CompressedAttentionSpec(
        heads=_HEADS,
        head_size=_SIZE,
        query_down=_linear(f"{index}.query_down", _LOW, _HIDDEN),
        query_down_norm=_norm(f"{index}.query_norm", _LOW),
        query=_linear(f"{index}.query", _HEADS * _SIZE, _LOW),
        head_norm=NormSpec(_SIZE, 1e-6, None),
        key=_linear(f"{index}.key", _SIZE, _HIDDEN),
        key_norm=_norm(f"{index}.key_norm", _SIZE),
        groups=groups,
        output_down=TensorSource(f"{index}.lower", (groups * rank, _HEADS * _SIZE // groups)),
        output=_linear(f"{index}.output", _HIDDEN, groups * rank),
        scale=_SIZE**-0.5,
        rope=RopeSpec(_TURNED, 10_000.0 if compressor is None else 160_000.0, interleaved=True),
        near=6,
        sinks=TensorSource(f"{index}.sinks", (_HEADS,)),
        compressor=compressor,
        indexer=indexer,
    )


def _compressor(name: str, stride: int, size: int, overlapping: bool) -> CompressorSpec:
    width = 2 * size if overlapping else size
    return CompressorSpec(
        stride,
        _linear(f"{name}_value", width, _HIDDEN),
        _linear(f"{name}_gate", width, _HIDDEN),
        TensorSource(f"{name}_bias", (stride, width)),
        _norm(f"{name}_norm", size),
        overlapping,
    )


def _run_indexer(name: str, top_k: int) -> RunIndexerSpec:
    return RunIndexerSpec(
        3,
        top_k,
        _linear(f"{name}_query", 3 * _SIZE, _LOW),
        _linear(f"{name}_weights", 3, _HIDDEN),
        _compressor(f"{name}_keys", 4, _SIZE, True),
    )
