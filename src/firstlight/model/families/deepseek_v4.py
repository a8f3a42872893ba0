"""DeepSeek-V4, Flash and Pro (DeepSeek-AI 2026, "DeepSeek-V4"): compressed attention, residual
streams that are mixed, and experts by a table of token ids in the first layers.

Where DeepSeek's published code differs from transformers', the latter counts. The code rounds
the indexer's operands to 4 bits (after a Hadamard transform, which changes no product) and
compressed entries to 8, as the model was trained to bear; here nothing is rounded but what the
state is kept in. And the code's first version bounds the gates of routed experts alone, not that
of the shared one; the report makes no such difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from firstlight.model.compressed_spec import (
    CompressedAttentionSpec,
    CompressorSpec,
    HyperConnectionSpec,
    IndexerSpec,
)
from firstlight.model.families.config import Config, shown
from firstlight.model.families.deepseek_v4_names import names_of
from firstlight.model.families.deepseek_v4_prediction import (
    prediction_layers,
    predictor_parts,
    predictor_spec,
)
from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.feed_forward_spec import ExpertSpec, ExpertsSpec
from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import LayerSpec, ModelSpec, ResidualSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.ops.gating import ClampedSwish, Gating

_SLIDING, _SPARSE, _HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
# The published config says of each layer how many tokens an entry stands for; that also says of
# which kind the layer is.
_KIND_OF_RATIO = {0: _SLIDING, 4: _SPARSE, 128: _HEAVY}
_RATIO_OF_KIND = {_SPARSE: 4, _HEAVY: 128}
_LONGEST_RUN = 4096
_MOST_STREAMS, _MOST_ITERATIONS = 64, 1000
# What decides how streams are mixed, and what weighs positions, is small: it is kept exact.
_KEPT = "f32"


def spec(parts: Parts) -> ModelSpec:
    """DeepSeek-V4 in its published layout, or in transformers'."""
    parts = parts.rename_whole(**names_of(parts.files.tensors))
    config = parts.config
    _check_variant(config)
    layers, end, behind = _layers(parts), _end(parts), prediction_layers(parts)
    predictor = None
    if behind and behind[0].used:
        inner = predictor_parts(parts)
        predictor = predictor_spec(inner, _layers(inner)[0], _end(inner))
    notes = tuple(each.note for each in behind)
    return parts.model("deepseek_v4", layers, connection=end, notes=notes, predictor=predictor)


def _layers(parts: Parts) -> tuple[LayerSpec, ...]:
    attention, feed_forward = _attention(parts), _feed_forward(parts)
    return tuple(
        LayerSpec(
            attention(index),
            _residual(parts, "attention", index),
            feed_forward(index),
            _residual(parts, "feed_forward", index),
        )
        for index in range(parts.layers)
    )


def _check_variant(config: Config) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if config.boolean(key, False):
            raise config.unsupported(key)
    if config.integer("num_key_value_heads", 1) != 1:
        raise config.unsupported("num_key_value_heads")
    if config.text("topk_method", "noaux_tc") != "noaux_tc":
        raise config.unsupported("topk_method")
    if not config.boolean("norm_topk_prob", True):
        raise config.unsupported("norm_topk_prob")


# Attention -------------------------------------------------------------------------------------


def _attention(parts: Parts) -> Callable[[int], CompressedAttentionSpec]:
    """Of each layer."""
    config, hidden, heads, size = parts.config, parts.hidden_size, parts.heads, parts.head_size
    low, rank = config.integer("q_lora_rank"), config.integer("o_lora_rank")
    groups = config.integer("o_groups", most=heads)
    if heads % groups:
        raise config.error("o_groups", f"is {groups}, which does not divide {heads} heads")
    kinds, ratios = _kinds(parts)
    near, sliding_rope, rope = config.integer("sliding_window"), *_ropes(parts)

    def of_layer(index: int) -> CompressedAttentionSpec:
        kind = kinds[index]
        head_norm = NormSpec(size, config.positive("rms_norm_eps", 1e-6), None)
        found = CompressedAttentionSpec(
            heads=heads,
            head_size=size,
            query_down=parts.linear("query_down", low, hidden, index),
            query_down_norm=parts.norm("query_down_norm", low, index),
            query=parts.linear("query_up", heads * size, low, index),
            head_norm=head_norm,
            key=parts.linear("key", size, hidden, index),
            key_norm=parts.norm("key_norm", size, index),
            groups=groups,
            output_down=parts.matrix("output_down", groups * rank, heads * size // groups, index),
            output=parts.linear("attention_output", hidden, groups * rank, index),
            scale=size**-0.5,
            rope=sliding_rope if kind == _SLIDING else rope,
            near=near,
            sinks=TensorSource(parts.tensor_name("sinks", index), (heads,)),
        )
        if kind == _SLIDING:
            return found
        ratio, sparse = ratios[kind], kind == _SPARSE
        compressor = _compressor(parts, "compressor", index, ratio, size, sparse)
        indexer = _indexer(parts, index, ratio, low, rope.size) if sparse else None
        return replace(found, compressor=compressor, indexer=indexer)

    return of_layer


def _kinds(parts: Parts) -> tuple[tuple[str, ...], dict[str, int]]:
    """Of each layer its kind; and of each kind with compression how long its runs are."""
    config, count = parts.config, parts.layers
    ratios = dict(_RATIO_OF_KIND)
    if config.has("layer_types"):
        names = config.texts("layer_types", count)
        for name in names:
            if name not in _KIND_OF_RATIO.values():
                raise config.unsupported("layer_types", f"has the type {shown(name)}")
        rates = config.section("compress_rates") or Config(config.subject, {})
        ratios = {
            kind: rates.integer(kind, ratio, least=2, most=_LONGEST_RUN)
            for kind, ratio in _RATIO_OF_KIND.items()
        }
        return names, ratios
    found = config.integers("compress_ratios", count)
    for ratio in found:
        if ratio not in _KIND_OF_RATIO:
            raise config.unsupported("compress_ratios", f"has {ratio}, not 0, 4 or 128")
    return tuple(_KIND_OF_RATIO[ratio] for ratio in found), ratios


def _compressor(
    parts: Parts, role: str, layer: int, stride: int, size: int, overlapping: bool
) -> CompressorSpec:
    width, hidden = (2 if overlapping else 1) * size, parts.hidden_size
    bias = TensorSource(parts.tensor_name(f"{role}_bias", layer), (stride, width), kept=_KEPT)
    return CompressorSpec(
        stride,
        parts.linear(f"{role}_value", width, hidden, layer),
        parts.linear(f"{role}_gate", width, hidden, layer),
        bias,
        parts.norm(f"{role}_norm", size, layer),
        overlapping,
    )


def _indexer(parts: Parts, layer: int, stride: int, low: int, turned: int) -> IndexerSpec:
    config = parts.config
    heads, size = config.integer("index_n_heads", most=1 << 16), config.integer("index_head_dim")
    if size < turned:
        raise config.error("index_head_dim", f"is {size}, and {turned} values of a head turn")
    return IndexerSpec(
        heads,
        config.integer("index_topk", most=1 << 24),
        parts.linear("indexer_query", heads * size, low, layer),
        parts.linear("indexer_weights", heads, parts.hidden_size, layer),
        _compressor(parts, "indexer", layer, stride, size, overlapping=True),
    )


def _ropes(parts: Parts) -> tuple[RopeSpec, RopeSpec]:
    """Of layers that only slide, and of those with compression, whose positions are scaled.

    As published, cosines and sines have no factor of YaRN's.
    """
    config = parts.config
    size = parts.head_size
    if config.has("partial_rotary_factor"):
        size = int(size * min(config.positive("partial_rotary_factor"), 2.0))
    size = config.integer("qk_rope_head_dim", size)
    if size % 2 or not 2 <= size <= parts.head_size:
        key = "qk_rope_head_dim"
        raise config.error(key, f"turns {size} of {parts.head_size} values of a head")
    section = config.section("rope_parameters") or Config(config.subject, {})
    main, compress = section.section("main"), section.section("compress")
    scaling = compress or config.section("rope_scaling") or section
    thetas = [
        (main or config).positive("rope_theta", 10_000.0),
        compress.positive("rope_theta", 160_000.0)
        if compress is not None and compress.has("rope_theta")
        else config.positive("compress_rope_theta", 160_000.0),
    ]
    scaled = {"attention_factor": 1.0, **scaling.values, "rope_theta": thetas[1]}
    parameters = {_SLIDING: {"rope_theta": thetas[0]}, _HEAVY: scaled}
    changed = parts.with_values(rope_parameters=parameters, rope_scaling=None)
    sliding, compressed = (
        rope_spec(changed, kind, interleaved=True, size=size) for kind in (_SLIDING, _HEAVY)
    )
    return sliding, compressed


# Residual streams ------------------------------------------------------------------------------


def _residual(parts: Parts, role: str, layer: int) -> ResidualSpec:
    streams = _streams(parts)
    connection = _connection(parts, role, layer, (2 + streams) * streams, 3)
    return replace(parts.residual(role, layer), connection=connection)


def _end(parts: Parts) -> HyperConnectionSpec:
    """Of the model's end, which has no more than what is taken."""
    return _connection(parts, "end", 0, _streams(parts), 1)


def _streams(parts: Parts) -> int:
    return parts.config.integer("hc_mult", most=_MOST_STREAMS)


def _connection(
    parts: Parts, role: str, layer: int, count: int, scales: int
) -> HyperConnectionSpec:
    config, streams = parts.config, _streams(parts)

    def source(part: str, *shape: int) -> TensorSource:
        return TensorSource(parts.tensor_name(f"{role}_{part}", layer), shape)

    mixing = replace(source("mixing", count, streams * parts.hidden_size), kept=_KEPT)
    return HyperConnectionSpec(
        streams,
        LinearSpec(mixing),
        source("base", count),
        source("scale", scales),
        config.integer("hc_sinkhorn_iters", most=_MOST_ITERATIONS),
        config.positive("hc_eps"),
        config.positive("rms_norm_eps", 1e-6),
    )


# Experts ---------------------------------------------------------------------------------------


def _feed_forward(parts: Parts) -> Callable[[int], ExpertsSpec]:
    """Of each layer."""
    config = parts.config
    experts = sizes(parts, "n_routed_experts", "moe_intermediate_size")
    numbers = routing_numbers(
        parts,
        experts.count,
        score="sqrt_softplus",
        renormalised=True,
        scale=config.positive("routed_scaling_factor", 1.0),
    )
    if parts.activation() != "silu":
        raise config.unsupported("hidden_act")
    gating: Gating = ClampedSwish(config.positive("swiglu_limit"))
    shared = config.integer("n_shared_experts", 1, least=0) * experts.width
    by_table = _by_table(parts)

    def of_layer(index: int) -> ExpertsSpec:
        found = experts_spec(
            parts,
            index,
            experts,
            numbers,
            gating=gating,
            correction=not by_table[index],
            shared_width=shared,
        )
        routed = tuple(_as_stored(parts, each) for each in found.experts)
        found = replace(found, experts=routed)
        if not by_table[index]:
            return found
        shape = config.integer("vocab_size"), numbers.top_k
        table = TensorSource(parts.tensor_name("hash_table", index), shape, integers=True)
        return replace(found, routing=replace(found.routing, hash_table=table))

    return of_layer


def _as_stored(parts: Parts, expert: ExpertSpec) -> ExpertSpec:
    """The expert with its products in 4 bits where the files have codes of these, and scales."""

    def product(linear: LinearSpec) -> LinearSpec:
        weight = linear.weight
        header = parts.files.tensors.get(weight.name)
        if header is None or header.format not in ("i8", "u8"):
            return linear
        scales = f"{weight.name.removesuffix('weight')}scale"
        return LinearSpec(replace(weight, scales=scales))

    return ExpertSpec(product(expert.gate), product(expert.up), product(expert.down))


def _by_table(parts: Parts) -> tuple[bool, ...]:
    """Of each layer whether a table of token ids says which experts a token goes to."""
    config, count = parts.config, parts.layers
    if config.has("mlp_layer_types"):
        names = config.texts("mlp_layer_types", count)
        for name in names:
            if name not in ("hash_moe", "moe"):
                raise config.unsupported("mlp_layer_types", f"has the type {shown(name)}")
        return tuple(name == "hash_moe" for name in names)
    first = config.integer("num_hash_layers", 3, least=0)
    return tuple(index < first for index in range(count))
