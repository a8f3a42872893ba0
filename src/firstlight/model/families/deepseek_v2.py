"""DeepSeek-V2, V2-Lite and Coder-V2 (DeepSeek-AI 2024, arXiv:2405.04434): latent attention, and
mixtures of experts behind the first layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from firstlight.model.attention_spec import IndexerSpec, LatentAttentionSpec
from firstlight.model.families.config import Config, shown
from firstlight.model.families.experts import experts_spec, routing_numbers, sizes
from firstlight.model.families.names import DEEPSEEK
from firstlight.model.families.parts import Parts
from firstlight.model.families.prediction import notes_on, prediction_layers, predictor_spec
from firstlight.model.families.rope import rope_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.part_specs import HeadLinearSpec
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import LayerSpec, ModelSpec
from firstlight.ops.routing import Routing

# Far beyond any published model.
_LARGEST_MAGNITUDE = 1e3
_LONGEST_TURNED = 1 << 16


def spec(parts: Parts) -> ModelSpec:
    """DeepSeek-V2 in its published layout."""
    parts = parts.with_defaults(max_position_embeddings=2048)
    if parts.gguf and parts.config.integer("n_group", 1) > 1:
        # Its files have no word for the method, and groups are there for one of them alone.
        parts = parts.with_values(topk_method="group_limited_greedy")
    return deepseek("deepseek_v2", parts, _routing, interleaved=True, correction=False)


def _routing(parts: Parts, count: int) -> Routing:
    """Softmax scores, within the groups of the largest single scores where groups are used.

    As in DeepSeek's modeling file, weights are either renormalised or scaled by
    `routed_scaling_factor`, never both. transformers scales them whatever `norm_topk_prob` says;
    in every published V2 that is false, and the two agree.
    """
    config = parts.config
    method = config.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.unsupported("topk_method")
    several = config.integer("num_experts_per_tok", most=count) > 1
    renormalised = config.boolean("norm_topk_prob", False) and several
    return routing_numbers(
        parts,
        count,
        renormalised=renormalised,
        scale=1.0 if renormalised else config.positive("routed_scaling_factor", 1.0),
        grouped=method == "group_limited_greedy",
    )


def deepseek(
    family: str,
    parts: Parts,
    routing: Callable[[Parts, int], Routing],
    *,
    interleaved: bool,
    correction: bool,
    indexer: Callable[[Parts, int], IndexerSpec] | None = None,
) -> ModelSpec:
    """What V2 and V3 have in common.

    Args:
        routing: among so many experts.
        interleaved: values of a rotary key that turn together are neighbours.
        correction: scores are corrected for the choice of experts.
        indexer: of a layer; None: every position is seen.
    """
    parts = _in_its_layout(parts)
    # Their number says nothing here, and must make sense all the same.
    _ = parts.key_value_heads
    if parts.gguf:
        parts = _of_gguf(parts)
    rope, scale = _rope(parts, interleaved), _score_scale(parts)
    feed_forward = _feed_forward(parts, routing, correction)

    def layer(index: int) -> LayerSpec:
        indexed = None if indexer is None else indexer(parts, index)
        attention = _attention(parts, index, rope, scale, indexed)
        return parts.layer(index, attention, feed_forward(index))

    layers = tuple(layer(index) for index in range(parts.layers))
    found = prediction_layers(parts)
    # What GGUF files call its tensors is not known here.
    predicts = found and not parts.gguf
    predictor = predictor_spec(parts, layer(parts.layers)) if predicts else None
    return parts.model(family, layers, notes=notes_on(parts, found), predictor=predictor)


def _in_its_layout(parts: Parts) -> Parts:
    """With DeepSeek's own names of tensors where the files have those."""
    embedding = f"{DEEPSEEK['embedding']}.weight"
    if embedding not in parts.files.tensors or parts.has("embedding"):
        return parts
    return parts.rename_whole(**DEEPSEEK)


def _of_gguf(parts: Parts) -> Parts:
    """The same with heads' sizes, which GGUF has in sums, and without layers that look ahead.

    Files since May 2025 state the sizes of keys and values under names of their own (`_mla`), for
    what `key_length` then says is the size of what is kept of a position.
    """
    config = parts.config
    rope = config.integer("rope_dimension_count")
    own = config.has("key_length_mla")
    key = config.integer("key_length_mla" if own else "head_dim")
    if key <= rope:
        raise config.error(
            "key_length_mla" if own else "head_dim", f"is {key}, and {rope} values of it turn"
        )
    ahead = config.integer("num_nextn_predict_layers", 0, least=0)
    if ahead >= parts.layers:
        raise config.error("num_nextn_predict_layers", f"is {ahead} of all layers")
    parts = parts.with_values(
        qk_rope_head_dim=rope,
        qk_nope_head_dim=key - rope,
        v_head_dim=config.integer("value_length_mla" if own else "value_length"),
        num_hidden_layers=parts.layers - ahead,
    )
    # Said only where it is so.
    return parts.with_defaults(norm_topk_prob=False)


def _attention(
    parts: Parts, index: int, rope: RopeSpec, scale: float, indexer: IndexerSpec | None
) -> LatentAttentionSpec:
    config, hidden, heads = parts.config, parts.hidden_size, parts.heads
    latent = config.integer("kv_lora_rank")
    plain, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    bias = config.boolean("attention_bias", False)
    query_width = heads * (plain + rope.size)
    down = down_norm = None
    query = "query"
    columns = hidden
    if config.has("q_lora_rank"):
        columns = config.integer("q_lora_rank")
        query = "query_up"
        down = parts.linear("query_down", columns, hidden, index, bias=bias)
        down_norm = parts.norm("query_down_norm", columns, index)
    key_up, value_up = _up_projections(parts, index, plain, value, latent)
    return LatentAttentionSpec(
        heads=heads,
        latent_size=latent,
        plain_size=plain,
        value_size=value,
        query_down=down,
        query_down_norm=down_norm,
        query=parts.linear(query, query_width, columns, index),
        latent=parts.linear("latent", latent + rope.size, hidden, index, bias=bias),
        latent_norm=parts.norm("latent_norm", latent, index),
        key_up=key_up,
        value_up=value_up,
        output=parts.linear("attention_output", hidden, heads * value, index, bias=bias),
        scale=scale,
        rope=rope,
        indexer=indexer,
    )


def _up_projections(
    parts: Parts, index: int, plain: int, value: int, latent: int
) -> tuple[HeadLinearSpec, HeadLinearSpec]:
    """Of keys and of values: two parts of each head's rows in one tensor, or one tensor each."""
    heads = parts.heads
    if parts.gguf and parts.has("key_up", index):
        keys = parts.matrix("key_up", heads * latent, plain, index)
        values = parts.matrix("value_up", heads * value, latent, index)
        return (
            HeadLinearSpec(replace(keys, folded=heads), 0, latent),
            HeadLinearSpec(replace(values, folded=heads), 0, value),
        )
    both = parts.matrix("key_value_up", heads * (plain + value), latent, index)
    return HeadLinearSpec(both, 0, plain, transposed=True), HeadLinearSpec(both, plain, value)


def _feed_forward(
    parts: Parts, routing: Callable[[Parts, int], Routing], correction: bool
) -> Callable[[int], ExpertsSpec | None]:
    """Of each layer its experts, or None where it is dense."""
    config = parts.config
    if not config.has("n_routed_experts"):
        return lambda _: None
    has_experts = _layers_with_experts(parts)
    if not any(has_experts):
        return lambda _: None
    experts = sizes(parts, "n_routed_experts", "moe_intermediate_size")
    numbers = routing(parts, experts.count)
    shared = config.integer("n_shared_experts", 0, least=0) * experts.width

    def experts_of(index: int) -> ExpertsSpec | None:
        # Those behind the last, of multi-token prediction, are as the last.
        if not has_experts[min(index, parts.layers - 1)]:
            return None
        return experts_spec(
            parts, index, experts, numbers, correction=correction, shared_width=shared
        )

    return experts_of


def _layers_with_experts(parts: Parts) -> tuple[bool, ...]:
    """For each layer, whether its feed-forward network is a mixture of experts."""
    config = parts.config
    if config.has("mlp_layer_types"):
        names = config.texts("mlp_layer_types", parts.layers)
        for name in names:
            if name not in ("dense", "sparse"):
                raise config.unsupported("mlp_layer_types", f"has the type {shown(name)}")
        return tuple(name == "sparse" for name in names)
    dense = config.integer("first_k_dense_replace", 0, least=0)
    every = config.integer("moe_layer_freq", 1)
    return tuple(index >= dense and index % every == 0 for index in range(parts.layers))


# Positions ------------------------------------------------------------------------------


def _rope(parts: Parts, interleaved: bool) -> RopeSpec:
    size = parts.config.integer("qk_rope_head_dim", most=_LONGEST_TURNED)
    if size % 2:
        raise parts.config.error("qk_rope_head_dim", f"is {size}, which are not whole pairs")
    config = parts.config
    for key in ("rope_scaling", "rope_parameters"):
        section = config.section(key)
        if section is not None:
            changed = {**config.values, key: _with_magnitude(section)}
            config = Config(config.subject, changed, config.name)
    return rope_spec(Parts(config, parts.files, parts.gguf), interleaved=interleaved, size=size)


def _with_magnitude(scaling: Config) -> Mapping[str, Any]:
    """YaRN's parameters with the factor of cosines and sines as published.

    DeepSeek's modeling file takes m(mscale) / m(mscale_all_dim), where m(w) = 0.1 w ln(factor) + 1,
    also where mscale_all_dim is 0 or absent and so its m is 1; transformers then takes m(1).
    """
    if (
        not scaling.has("mscale")
        or scaling.has("attention_factor")
        or scaling.number("mscale_all_dim", 0.0)
        or scaling.number("factor", 1.0) <= 1
    ):
        return scaling.values
    return {**scaling.values, "attention_factor": _magnitude(scaling, "mscale")}


def _magnitude(scaling: Config, key: str) -> float:
    """m(w) = 0.1 w ln(factor) + 1 of the weight under that key; 1 where nothing is stretched."""
    factor = scaling.positive("factor", 1.0)
    return 1.0 if factor <= 1 else 0.1 * scaling.number(key, 0.0) * math.log(factor) + 1.0


def _score_scale(parts: Parts) -> float:
    """(plain + rope) ** -0.5, times m(mscale_all_dim) ** 2 where positions are scaled.

    YaRN (arXiv:2309.00071), section 3.4, has the factor 1 / sqrt(t) in queries and keys; the
    published modeling files move it from cosines and sines into the scores, so that the part of
    the keys that does not turn has it too.
    """
    config = parts.config
    scale = (config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim")) ** -0.5
    scaling = config.section("rope_scaling") or config.section("rope_parameters")
    if scaling is None or scaling.text("rope_type", scaling.text("type", "default")) == "default":
        return float(scale)
    magnitude = _magnitude(scaling, "mscale_all_dim")
    if not 0 < magnitude <= _LARGEST_MAGNITUDE:
        raise scaling.error("mscale_all_dim", f"gives scores a factor of {magnitude:g} squared")
    return float(scale * magnitude**2)
