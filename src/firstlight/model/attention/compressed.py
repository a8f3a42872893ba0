"""DeepSeek-V4's attention: a window of shared keys, and entries of earlier runs of tokens.

Streams of a layer, in order: the keys of the window. With a compressor: its entries, and what an
entry is made of for as long as the run is open (where runs overlap, one run longer). With an
indexer: the same of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.model.angles import Angles
from firstlight.model.compressed_spec import CompressedAttentionSpec, CompressorSpec, IndexerSpec
from firstlight.model.parts import norm, product
from firstlight.model.rope import AngleTable
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import ResidualSpec
from firstlight.model.stream import StreamSpec
from firstlight.model.weights import Weights
from firstlight.ops import Norm, Ops, PackedWeight, PagedRows, Product, Tensor
from firstlight.ops.parts import apply_norm, apply_product, join_residual


@dataclass(frozen=True, eq=False)
class Compressor:
    """A compressor with its tensors on the backend; see `CompressorSpec`."""

    stride: int
    value: Product
    gate: Product
    bias: PackedWeight
    norm: Norm | None
    size: int
    overlapping: bool


@dataclass(frozen=True, eq=False)
class Indexer:
    """An indexer with its tensors on the backend; see `IndexerSpec`."""

    heads: int
    top_k: int
    query: Product
    weights: Product
    keys: Compressor


@dataclass(frozen=True, eq=False)
class CompressedAttentionBlock:
    """One layer's attention with its tensors on the backend; see `CompressedAttentionSpec`."""

    heads: int
    head_size: int
    query_down: Product
    query_down_norm: Norm | None
    query: Product
    head_norm: Norm | None
    key: Product
    key_norm: Norm | None
    groups: int
    output_down: PackedWeight
    output: Product
    scale: float
    rope: RopeSpec
    window: int
    sinks: Tensor
    compressor: Compressor | None
    indexer: Indexer | None
    pre_norm: Norm | None
    post_norm: Norm | None
    residual_scale: float | None


def streams(spec: CompressedAttentionSpec) -> tuple[StreamSpec, ...]:
    """Keys of the window; entries and open runs of the compressor and of the indexer."""
    found = [StreamSpec("key", (1, spec.head_size), window=spec.near)]
    if spec.compressor is not None:
        found += _streams("compressed", spec.compressor)
    if spec.indexer is not None:
        found += _streams("index", spec.indexer.keys)
    return tuple(found)


def angle_tables(spec: CompressedAttentionSpec) -> tuple[AngleTable, ...]:
    """Of queries and keys, of the result that is turned back, and of entries of runs."""
    compressors = [spec.compressor, None if spec.indexer is None else spec.indexer.keys]
    strides = dict.fromkeys(each.stride for each in compressors if each is not None)
    runs = (AngleTable(spec.rope, stride) for stride in strides)
    return AngleTable(spec.rope), AngleTable(spec.rope, back=True), *runs


def _streams(name: str, spec: CompressorSpec) -> list[StreamSpec]:
    """The entries, then values and gates of the positions that the next entry is made of."""
    stride, size = spec.stride, spec.entry_size
    open_run = StreamSpec(f"{name}, open run", (2, size), window=stride, run=stride)
    before = StreamSpec(f"{name}, run before", (2, size), window=2 * stride, run=stride)
    entries = StreamSpec(name, (size,), stride=stride)
    return [entries, open_run, before] if spec.overlapping else [entries, open_run]


def attention_block(
    spec: CompressedAttentionSpec, residual: ResidualSpec, weights: Weights
) -> CompressedAttentionBlock:
    """The block with its tensors on the backend."""
    return CompressedAttentionBlock(
        heads=spec.heads,
        head_size=spec.head_size,
        query_down=product(spec.query_down, weights),
        query_down_norm=norm(spec.query_down_norm, weights),
        query=product(spec.query, weights),
        head_norm=norm(spec.head_norm, weights),
        key=product(spec.key, weights),
        key_norm=norm(spec.key_norm, weights),
        groups=spec.groups,
        output_down=weights[spec.output_down],
        output=product(spec.output, weights),
        scale=spec.scale,
        rope=spec.rope,
        window=spec.near,
        sinks=weights[spec.sinks],
        compressor=_compressor(spec.compressor, weights),
        indexer=_indexer(spec.indexer, weights),
        pre_norm=norm(residual.pre_norm, weights),
        post_norm=norm(residual.block_norm, weights),
        residual_scale=residual.block_scale,
    )


def _compressor(spec: CompressorSpec | None, weights: Weights) -> Compressor | None:
    if spec is None:
        return None
    return Compressor(
        spec.stride,
        product(spec.value, weights),
        product(spec.gate, weights),
        weights[spec.bias],
        norm(spec.norm, weights),
        spec.entry_size,
        spec.overlapping,
    )


def _indexer(spec: IndexerSpec | None, weights: Weights) -> Indexer | None:
    if spec is None:
        return None
    keys = _compressor(spec.keys, weights)
    assert keys is not None
    return Indexer(
        spec.heads, spec.top_k, product(spec.query, weights), product(spec.weights, weights), keys
    )


@dataclass(frozen=True, eq=False)
class _Kept:
    """One stream of the layer: its pages, and the step's rows in them."""

    pages: Tensor
    rows: PagedRows


def attend(
    ops: Ops,
    x: Tensor,
    block: CompressedAttentionBlock,
    pages: tuple[Tensor, ...],
    rows: tuple[PagedRows, ...],
    angles: Angles,
) -> Tensor:
    """DeepSeek-V4's report, equations 9 to 27; of section 2.3.3 the norms, the turning of the last
    values of a head, the turning back of the result, and the sinks.

    All that a later token may need is written to streams first and read back from them, so that
    what state is rounded to enters in the same way wherever a chunk ends.

    Args:
        x: float32 [n, hidden_size].
        pages, rows: of each of the layer's streams, in the order of `streams`.
        angles: of the step.

    Returns:
        float32 [n, hidden_size]; as `join_residual`.
    """
    count, heads, size, turned = x.shape[0], block.heads, block.head_size, block.rope.size
    kept = [_Kept(*pair) for pair in zip(pages, rows, strict=True)]
    near, others = kept[0], kept[1:]
    normed = apply_norm(ops, x, block.pre_norm)
    low = apply_norm(ops, apply_product(ops, normed, block.query_down), block.query_down_norm)
    query = apply_product(ops, low, block.query).reshape((count, heads, size))
    query = _turn_end(ops, apply_norm(ops, query, block.head_norm), angles.of(block.rope), turned)
    key = apply_norm(ops, apply_product(ops, normed, block.key), block.key_norm)
    key = _turn_end(ops, key.reshape((count, 1, size)), angles.of(block.rope), turned)
    ops.stream_write(near.pages, key, near.rows)
    if block.compressor is None:
        found = ops.attention_with_sinks(
            query, near.pages, near.pages, near.rows, block.scale, block.window, block.sinks
        )
    else:
        far = _compress(ops, normed, block.compressor, others, block.rope, angles)
        stride, chosen = block.compressor.stride, None
        if block.indexer is not None:
            others = others[_stream_count(block.compressor) :]
            chosen = _choose(ops, normed, low, block.indexer, others, block.rope, angles)
        found = ops.compressed_attention(
            query,
            near.pages,
            near.rows,
            block.window,
            far.pages,
            far.rows,
            stride,
            chosen,
            block.scale,
            block.sinks,
        )
    found = _turn_end(ops, found, angles.back(block.rope), turned)
    grouped = found.reshape((count, block.groups, heads * size // block.groups))
    rank = block.output_down.shape[0] // block.groups
    lowered = ops.head_linear(grouped, block.output_down, 0, rank, False)
    out = apply_product(ops, lowered.reshape((count, block.groups * rank)), block.output)
    return join_residual(ops, x, out, block.post_norm, block.residual_scale)


def _stream_count(compressor: Compressor) -> int:
    return 3 if compressor.overlapping else 2


def _turn_end(ops: Ops, x: Tensor, table: Tensor, turned: int) -> Tensor:
    """The last `turned` values of each head, float32 [n, heads, size], turned."""
    size = x.shape[2]
    if size == turned:
        return ops.rotary(x, table, True)
    end = ops.rotary(ops.take_columns(x, size - turned, size), table, True)
    return ops.join_columns(ops.take_columns(x, 0, size - turned), end)


def _compress(
    ops: Ops,
    normed: Tensor,
    compressor: Compressor,
    kept: list[_Kept],
    rope: RopeSpec,
    angles: Angles,
) -> _Kept:
    """Write the rows' part in their runs' entries, and the entries of runs that they complete;
    the stream of entries."""
    entries, open_run = kept[0], kept[1]
    stride, size, count = compressor.stride, compressor.size, normed.shape[0]
    places = open_run.rows.positions % stride
    values = apply_product(ops, normed, compressor.value)
    gates = ops.add(apply_product(ops, normed, compressor.gate), ops.embed(compressor.bias, places))

    def write(stream: _Kept, first: int) -> None:
        both = ops.join_columns(
            ops.take_columns(values, first, first + size),
            ops.take_columns(gates, first, first + size),
        )
        ops.stream_write(stream.pages, both.reshape((count, 2, size)), stream.rows)

    if compressor.overlapping:
        before = kept[2]
        write(before, 0)
        write(open_run, size)
        pooled = ops.pool_runs(open_run.pages, open_run.rows, stride, before.pages, before.rows)
    else:
        write(open_run, 0)
        pooled = ops.pool_runs(open_run.pages, open_run.rows, stride)
    runs = pooled.shape[0]
    if runs:
        made = apply_norm(ops, pooled, compressor.norm).reshape((runs, 1, size))
        made = _turn_end(ops, made, angles.of_runs(rope, stride), rope.size)
        ops.stream_write(entries.pages, made.reshape((runs, size)), entries.rows.runs(stride))
    return entries


def _choose(
    ops: Ops,
    normed: Tensor,
    low: Tensor,
    indexer: Indexer,
    kept: list[_Kept],
    rope: RopeSpec,
    angles: Angles,
) -> Tensor:
    """The runs that each row attends to, as `compressed_attention` takes them."""
    keys = _compress(ops, normed, indexer.keys, kept, rope, angles)
    query = apply_product(ops, low, indexer.query)
    query = query.reshape((normed.shape[0], indexer.heads, indexer.keys.size))
    query = _turn_end(ops, query, angles.of(rope), rope.size)
    weights = apply_product(ops, normed, indexer.weights)
    return ops.select_entries(
        query, weights, keys.pages, keys.rows, indexer.keys.stride, indexer.top_k
    )
