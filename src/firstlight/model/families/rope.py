"""Rotary embeddings as configs write them.

Two vocabularies: `rope_theta` beside `rope_scaling` (transformers before version 5), and
`rope_parameters`, which holds both and may be nested by layer type (version 5).
"""

from __future__ import annotations

import math

from firstlight.errors import UnsupportedModelError
from firstlight.model.families.config import Config
from firstlight.model.families.parts import Parts
from firstlight.model.spec import (
    DynamicScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)


def rope_spec(
    parts: Parts,
    layer_type: str = "full_attention",
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
) -> RopeSpec:
    """The rotary embedding of layers of one type.

    Args:
        layer_type: key into `rope_parameters` where those are nested.
        theta: base where the config names none.
        interleaved: pairs are neighbours.
    """
    config = parts.config
    found = _parameters(config, layer_type)
    base = found.positive("rope_theta", config.positive("rope_theta", theta))
    fraction = found.positive(
        "partial_rotary_factor", config.positive("partial_rotary_factor", 1.0)
    )
    size = int(parts.head_size * fraction)
    if size % 2 or not 2 <= size <= parts.head_size:
        raise config.error(
            "partial_rotary_factor", f"turns {size} of {parts.head_size} values of a head"
        )
    return RopeSpec(size, base, _scaling(parts, found, base, size), interleaved)


def _parameters(config: Config, layer_type: str) -> Config:
    parameters = config.section("rope_parameters")
    if parameters is not None:
        return parameters.section(layer_type) or parameters
    return config.section("rope_scaling") or Config(config.subject, {})


def _scaling(parts: Parts, found: Config, theta: float, size: int) -> RopeScaling | None:
    config = parts.config
    context = config.integer("max_position_embeddings", 2048)
    kind = found.text("rope_type", found.text("type", "default"))
    original = found.integer(
        "original_max_position_embeddings",
        config.integer("original_max_position_embeddings", context),
    )
    match kind:
        case "default":
            return None
        case "factors":  # GGUF only: see gguf.py
            return FactorScaling(found.numbers("factors", size // 2))
        case "linear":
            return LinearScaling(found.positive("factor"))
        case "dynamic":
            return DynamicScaling(found.positive("factor"), context)
        case "llama3":
            return Llama3Scaling(
                found.positive("factor"),
                found.positive("low_freq_factor"),
                found.positive("high_freq_factor"),
                original,
            )
        case "yarn":
            return _yarn(found, context, original)
        case "longrope" | "su":
            factor = found.positive("factor", context / original)
            default = 1.0
            if factor > 1.0:
                default = math.sqrt(1 + math.log(factor) / math.log(original))
            return LongRopeScaling(
                found.numbers("short_factor", size // 2),
                found.numbers("long_factor", size // 2),
                original,
                found.positive("attention_factor", default),
            )
    raise UnsupportedModelError(
        config.subject,
        f"rope type {kind!r} is unknown; known are default, linear, dynamic, llama3, yarn, "
        "longrope",
        "Open an issue that names the model, so that the variant can be added",
    )


def _yarn(found: Config, context: int, original: int) -> YarnScaling:
    factor = found.positive("factor", context / original)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    default = magnitude(1.0)
    if found.has("mscale") and found.has("mscale_all_dim"):
        default = magnitude(found.number("mscale")) / magnitude(found.number("mscale_all_dim"))
    return YarnScaling(
        factor,
        original,
        found.positive("beta_fast", 32.0),
        found.positive("beta_slow", 1.0),
        found.positive("attention_factor", default),
        found.boolean("truncate", True),
    )
