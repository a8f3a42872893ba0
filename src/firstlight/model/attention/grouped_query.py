"""Multi-head, grouped-query and multi-query attention with keys and values as streams."""

from __future__ import annotations

from firstlight.model.spec import GroupedQuerySpec, LinearSpec, NormSpec
from firstlight.model.stream import StreamSpec
from firstlight.model.weights import Weights
from firstlight.ops import Ops, PagedRows, Tensor


def streams(spec: GroupedQuerySpec) -> tuple[StreamSpec, ...]:
    """Keys, after norm and rotation, and values: one entry each per token."""
    entry = (spec.key_value_heads, spec.head_size)
    return (
        StreamSpec("key", entry, window=spec.window),
        StreamSpec("value", entry, window=spec.window),
    )


def attend(
    spec: GroupedQuerySpec,
    weights: Weights,
    ops: Ops,
    x: Tensor,
    pages: tuple[Tensor, ...],
    rows: tuple[PagedRows, ...],
    cosine_sine: Tensor | None,
) -> Tensor:
    """The attention block of one layer.

    Args:
        x: float32 [n, hidden_size], normed already where the model norms before.
        pages: the key and the value stream's pages; the rows' entries are written here.
        rows: where they lie, for each stream.
        cosine_sine: the table of the layer's rotary embedding, or None where it has none.

    Returns:
        float32 [n, hidden_size].
    """

    def project(linear: LinearSpec, norm: NormSpec | None, heads: int) -> Tensor:
        bias = None if linear.bias is None else weights[linear.bias]
        out = ops.linear(x, weights[linear.weight], bias)
        if norm is not None:
            weight = None if norm.weight is None else weights[norm.weight]
            out = ops.rms_norm(out.reshape((x.shape[0], -1, norm.size)), weight, norm.epsilon)
        return out.reshape((x.shape[0], heads, spec.head_size))

    query = project(spec.query, spec.query_norm, spec.heads)
    key = project(spec.key, spec.key_norm, spec.key_value_heads)
    value = project(spec.value, None, spec.key_value_heads)
    if spec.rope is not None:
        query = ops.rotary(query, cosine_sine, spec.rope.interleaved)
        key = ops.rotary(key, cosine_sine, spec.rope.interleaved)
    ops.stream_write(pages[0], key, rows[0])
    ops.stream_write(pages[1], value, rows[1])
    mixed = ops.attention(
        query, pages[0], pages[1], rows[0], spec.scale, spec.window, spec.soft_cap
    )
    bias = None if spec.output.bias is None else weights[spec.output.bias]
    return ops.linear(
        mixed.reshape((x.shape[0], spec.heads * spec.head_size)),
        weights[spec.output.weight],
        bias,
    )
