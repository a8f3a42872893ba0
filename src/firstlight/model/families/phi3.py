"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219): Llama's blocks with query, key
and value in one matrix, gate and up in another, and LongRoPE for long contexts."""

from __future__ import annotations

from firstlight.model.attention_spec import GroupedQuerySpec
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.feed_forward_spec import GatedFeedForwardSpec
from firstlight.model.part_specs import LinearSpec
from firstlight.model.rope_spec import LongRopeScaling, RopeSpec
from firstlight.model.spec import ModelSpec


def spec(parts: Parts) -> ModelSpec:
    """Phi-3; the fused matrices are used row by row, as they lie."""
    parts = parts.with_defaults(max_position_embeddings=4096, rms_norm_eps=1e-5)
    if not parts.gguf:
        parts = parts.with_defaults(original_max_position_embeddings=4096)
    rope = rope_spec(parts, partial=True)
    if rope.scaling is not None and not isinstance(rope.scaling, LongRopeScaling):
        raise parts.config.unsupported("rope_type", "is neither 'longrope' nor 'default'")
    windows = parts.windows(lambda _: parts.config.has("sliding_window"))
    layers = (
        parts.layer(index, _attention(parts, index, rope, window), _feed_forward(parts, index))
        for index, window in enumerate(windows)
    )
    return parts.model("phi3", tuple(layers))


def _attention(parts: Parts, index: int, rope: RopeSpec, window: int | None) -> GroupedQuerySpec:
    query, key = parts.query_width, parts.key_value_width

    def part(rows: int, first_row: int) -> LinearSpec:
        return parts.linear(
            "query_key_value",
            rows,
            parts.hidden_size,
            index,
            first_row=first_row,
            fused_rows=query + 2 * key,
        )

    return parts.attention(
        index,
        rope,
        window=window,
        query=part(query, 0),
        key=part(key, query),
        value=part(key, query + key),
    )


def _feed_forward(parts: Parts, index: int) -> GatedFeedForwardSpec:
    hidden, width = parts.hidden_size, parts.config.integer("intermediate_size")
    gate, up = (
        parts.linear("gate_up", width, hidden, index, first_row=first, fused_rows=2 * width)
        for first in (0, width)
    )
    down = parts.linear("down", hidden, width, index)
    return GatedFeedForwardSpec(gate, up, down, parts.activation())
