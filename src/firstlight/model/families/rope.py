"""Rotary embeddings as configs write them.

Two vocabularies: `rope_theta` beside `rope_scaling` (transformers before version 5), and
`rope_parameters`, which holds both and may be nested by layer type (version 5). Where a config
has both, `rope_scaling` counts, as it does in transformers.
"""

from __future__ import annotations

import math

import numpy as np

from firstlight.model.families.config import Config, shown
from firstlight.model.families.parts import Parts
from firstlight.model.rope import inverse_frequencies
from firstlight.model.rope_spec import (
    DynamicScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

# Far beyond any published model; keeps every product of two such values finite.
_LARGEST_FACTOR = 1e6
_LARGEST_THETA = 1e15
_DEFAULT_THETA = 10_000.0
_KNOWN = "default, linear, dynamic, llama3, yarn, longrope"


def rope_spec(
    parts: Parts,
    layer_type: str = "full_attention",
    *,
    interleaved: bool = False,
    partial: bool = False,
    theta_key: str = "rope_theta",
    scaled: bool = True,
    size: int | None = None,
) -> RopeSpec:
    """The rotary embedding of layers of one type.

    Args:
        layer_type: key into `rope_parameters` where those are nested.
        interleaved: pairs are neighbours.
        partial: the family turns a part of each head where the config says so.
        theta_key: of the base, where it is not among the parameters.
        scaled: `rope_scaling` is for layers of this type.
        size: how many values of a head turn, where the family says so itself.

    Raises:
        CheckpointError, UnsupportedModelError: the config's parameters are not usable or unknown.
    """
    config = parts.config
    found = _parameters(config, layer_type, scaled)
    theta = found.positive("rope_theta", config.positive(theta_key, _DEFAULT_THETA))
    if theta > _LARGEST_THETA or theta <= 1:
        raise config.error("rope_theta", f"is {theta}, not above 1 and up to {_LARGEST_THETA:g}")
    size = size or _turned_size(parts, found, partial)
    rope = RopeSpec(size, theta, _scaling(config, found, size), interleaved)
    _check_frequencies(config, rope)
    return rope


def _parameters(config: Config, layer_type: str, scaled: bool) -> Config:
    nothing = Config(config.subject, {})
    parameters = config.section("rope_parameters") or nothing
    if parameters.has(layer_type):
        parameters = parameters.section(layer_type) or nothing
    elif layer_type != "full_attention":
        parameters = nothing  # parameters that are not nested are those of full layers
    scaling = config.section("rope_scaling") if scaled else None
    if scaling is None or not scaling.values:
        return parameters
    return Config(config.subject, {**parameters.values, **scaling.values})


def _turned_size(parts: Parts, found: Config, partial: bool) -> int:
    config, head_size = parts.config, parts.head_size
    key = "partial_rotary_factor"
    fraction = found.positive(key, config.positive(key, 1.0))
    if fraction != 1.0 and not partial:
        raise config.unsupported(key, f"is {fraction}")
    size = int(head_size * min(fraction, 2.0))
    if parts.gguf:
        key = "rope_dimension_count"
        size = config.integer(key, head_size)
    if size % 2 or not 2 <= size <= head_size:
        raise config.error(key, f"turns {size} of {head_size} values of a head")
    return size


def _scaling(config: Config, found: Config, size: int) -> RopeScaling | None:
    kind = found.text("rope_type", found.text("type", "default"))
    context = config.integer("max_position_embeddings")
    key = "original_max_position_embeddings"
    original = config.integer(key, found.integer(key, context))
    match kind:
        case "default":
            return None
        case "factors":  # GGUF only: see gguf.py
            return FactorScaling(found.numbers("factors", size // 2))
        case "linear":
            return LinearScaling(_factor(found))
        case "dynamic":
            if size == 2:
                raise config.error("rope_type", "is 'dynamic', which needs heads of more than 2")
            return DynamicScaling(_factor(found), context)
        case "llama3":
            return _llama3(found, original)
        case "yarn":
            return _yarn(found, context, original)
        case "longrope" | "su":
            return _longrope(found, context, original, size)
    raise config.unsupported("rope_type", f"is {shown(kind)}, not one of {_KNOWN}")


def _factor(found: Config, key: str = "factor", default: float | None = None) -> float:
    factor = found.positive(key) if default is None else found.positive(key, default)
    if factor > _LARGEST_FACTOR:
        raise found.error(key, f"is {factor:g}, above {_LARGEST_FACTOR:g}")
    return factor


def _llama3(found: Config, original: int) -> Llama3Scaling:
    low, high = _factor(found, "low_freq_factor"), _factor(found, "high_freq_factor")
    if high <= low:
        raise found.error("high_freq_factor", f"is {high}, not above low_freq_factor, {low}")
    return Llama3Scaling(_factor(found), low, high, original)


def _yarn(found: Config, context: int, original: int) -> YarnScaling:
    factor = _factor(found, default=context / original)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    default = magnitude(1.0)
    weights = [found.number(key, 0.0) for key in ("mscale", "mscale_all_dim")]
    if all(weights):
        numerator, denominator = map(magnitude, weights)
        if denominator <= 0:
            raise found.error("mscale_all_dim", f"is {weights[1]}, which leaves no magnitude")
        default = numerator / denominator
    return YarnScaling(
        factor,
        original,
        _factor(found, "beta_fast", 32.0),
        _factor(found, "beta_slow", 1.0),
        _factor(found, "attention_factor", default),
        found.boolean("truncate", True),
    )


def _longrope(found: Config, context: int, original: int, size: int) -> LongRopeScaling:
    factor = _factor(found, default=context / original)
    default = 1.0
    if factor > 1.0:
        if original == 1:
            raise found.error("original_max_position_embeddings", "is 1, and its logarithm 0")
        default = math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        found.numbers("short_factor", size // 2),
        found.numbers("long_factor", size // 2),
        original,
        _factor(found, "attention_factor", default),
    )


def _check_frequencies(config: Config, rope: RopeSpec) -> None:
    """Whether the parameters, each within its range, make frequencies together."""
    with np.errstate(all="ignore"):
        try:
            tables = [inverse_frequencies(rope, length)[0] for length in (1, 1 << 24)]
        except ArithmeticError:
            tables = [np.array([np.nan])]
    if not all(np.isfinite(table).all() for table in tables):
        raise config.error("rope_scaling", "gives frequencies that are not finite")
