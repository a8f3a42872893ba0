"""Cases of latent attention: its products of heads, its attention, its columns, and the block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.formats.base import BlockScales, Weight
from firstlight.formats.registry import get_format
from firstlight.ops.head_linear import HeadProduct
from firstlight.ops.latent_attention import Expansion
from firstlight.ops.latent_attention_block import LatentAttentionBlock
from firstlight.ops.parts import Norm, Product
from firstlight.verify.cases.attention import Layout, paged_rows, stream_pages
from firstlight.verify.cases.base import Arguments, Case, StreamArgument, normal
from firstlight.verify.random_weights import random_weight

_EPSILON = 1e-6
_BLOCK = (16, 8)


@dataclass(frozen=True)
class LatentShape:
    """What sets one case apart from another; see `LatentAttentionBlock`.

    Attributes:
        format: of the products; "f8_e4m3" with scales of blocks.
        sequences, page_tokens: as in `Layout`.
        separate: keys and values have up-projections of their own, the keys' as they are used.
        low_rank: of the query; 0: it is a product of the stream.
    """

    name: str
    format: str = "f32"
    sequences: tuple[tuple[int, int], ...] = ((100, 1), (0, 19), (31, 5), (7, 1))
    page_tokens: int = 4
    columns: int = 48
    heads: int = 3
    latent: int = 40
    plain: int = 10
    rope: int = 6
    value: int = 14
    low_rank: int = 20
    separate: bool = False
    stream: str = "float32"
    quick: bool = False


_SHAPES = (
    LatentShape("mixed", quick=True),
    LatentShape("no rows", sequences=()),
    LatentShape("one token", sequences=((0, 1),), low_rank=0),
    LatentShape("decode", sequences=((0, 1), (15, 1), (200, 1)), stream="bfloat16", quick=True),
    LatentShape("separate", separate=True, low_rank=0),
    LatentShape("f8_e4m3", "f8_e4m3", quick=True),
    LatentShape("bf16", "bf16", stream="bfloat16"),
    LatentShape("f16, one head", "f16", heads=1, latent=33, plain=7, value=3),
    LatentShape("q8_0", "q8_0", columns=64, latent=64, low_rank=32, value=32, heads=2),
    LatentShape(
        *("q4_0, separate", "q4_0", ((80, 3),), 16),
        *(64, 2, 128, 64, 8, 32, 32),
        separate=True,
        quick=True,
    ),
    # V2-Lite's and V3's sizes of heads.
    LatentShape(
        *("published sizes", "bf16", ((130, 2), (3, 1)), 64),
        *(32, 4, 512, 128, 64, 128),
        low_rank=0,
        quick=True,
    ),
    LatentShape("many heads", "f32", ((1030, 1), (64, 2)), 64, 16, 128, 64, 16, 8, 16, 0),
)


def head_linear_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        for which in ("keys", "values"):
            yield _head_linear(shape, which)


def _head_linear(shape: LatentShape, which: str) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        key, value = _ups(shape, generator)
        part = key if which == "keys" else value
        width = shape.plain if which == "keys" else shape.latent
        x = normal(generator, _count(shape), shape.heads, width)
        return x, part.weight, part.first, part.size, part.transposed

    return Case("head_linear", f"{shape.name}, {which}", make, quick=shape.quick)


def latent_attention_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _latent_attention(shape)


def _latent_attention(shape: LatentShape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout_of(shape), generator)
        size = shape.latent + shape.rope
        queries = normal(generator, _count(shape), shape.heads, size)
        return queries, _entries(shape, pages, generator), shape.latent, rows, size**-0.5

    return Case("latent_attention", shape.name, make, quick=shape.quick)


def expanded_latent_attention_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _expanded_latent_attention(shape)


def _expanded_latent_attention(shape: LatentShape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout_of(shape), generator)
        key, value = _ups(shape, generator)
        size = shape.plain + shape.rope
        queries = normal(generator, _count(shape), shape.heads, size)
        expansion = Expansion(key.first, key.size, key.transposed, value.first, value.size)
        entries = _entries(shape, pages, generator)
        scale = (size * shape.latent) ** -0.5
        return queries, entries, key.weight, value.weight, expansion, rows, scale

    return Case("expanded_latent_attention", shape.name, make, quick=shape.quick)


def latent_attention_block_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _latent_attention_block(shape)


def _latent_attention_block(shape: LatentShape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout_of(shape), generator)
        count = _count(shape)
        angles = generator.uniform(0, 6.3, (count, shape.rope // 2)).astype(np.float32)
        table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x = normal(generator, count, shape.columns)
        return x, latent_block(shape, generator), _entries(shape, pages, generator), rows, table

    return Case("latent_attention_block", shape.name, make, quick=shape.quick)


def latent_block(shape: LatentShape, generator: np.random.Generator) -> LatentAttentionBlock:
    key_up, value_up = _ups(shape, generator)
    low = shape.low_rank
    queries = shape.heads * (shape.plain + shape.rope)

    def product(rows: int, columns: int) -> Product:
        return Product(latent_weight(shape.format, rows, columns, generator))

    def norm(size: int) -> Norm:
        # So large that products of normed values are about one.
        weight = generator.uniform(0.5, 1.5, size).astype(np.float32) * np.float32(size**-0.5)
        return Norm(size, _EPSILON, weight)

    return LatentAttentionBlock(
        heads=shape.heads,
        latent_size=shape.latent,
        plain_size=shape.plain,
        rope_size=shape.rope,
        value_size=shape.value,
        query_down=product(low, shape.columns) if low else None,
        query_down_norm=norm(low) if low else None,
        query=product(queries, low or shape.columns),
        latent=product(shape.latent + shape.rope, shape.columns),
        latent_norm=norm(shape.latent),
        key_up=key_up,
        value_up=value_up,
        output=product(shape.columns, shape.heads * shape.value),
        scale=(shape.plain + shape.rope) ** -0.5,
        pre_norm=norm(shape.columns),
    )


def _ups(shape: LatentShape, generator: np.random.Generator) -> tuple[HeadProduct, HeadProduct]:
    heads, latent, plain, value = shape.heads, shape.latent, shape.plain, shape.value
    if shape.separate:
        keys = latent_weight(shape.format, heads * latent, plain, generator)
        values = latent_weight(shape.format, heads * value, latent, generator)
        return HeadProduct(keys, 0, latent), HeadProduct(values, 0, value)
    both = latent_weight(shape.format, heads * (plain + value), latent, generator)
    return HeadProduct(both, 0, plain, transposed=True), HeadProduct(both, plain, value)


def latent_weight(format: str, rows: int, columns: int, generator: np.random.Generator) -> Weight:
    weight = random_weight(get_format(format), rows, columns, generator)
    if format != "f8_e4m3":
        return weight
    blocks = [-(-size // part) for size, part in zip((rows, columns), _BLOCK, strict=True)]
    scales = generator.uniform(0.25, 2.0, blocks).astype(np.float32)
    return Weight(
        weight.format, weight.shape, weight.data, weight.name, BlockScales(scales, *_BLOCK)
    )


def layout_of(shape: LatentShape) -> Layout:
    return Layout(shape.name, shape.sequences, shape.page_tokens)


def _count(shape: LatentShape) -> int:
    return sum(count for _, count in shape.sequences)


def _entries(shape: LatentShape, pages: int, generator: np.random.Generator) -> StreamArgument:
    size = shape.latent + shape.rope
    return stream_pages(generator, (pages, shape.page_tokens, size), shape.stream)


# Columns ------------------------------------------------------------------------------------


def take_columns_cases() -> Iterator[Case]:
    for rows, start, stop in ((3, 0, 5), (1, 4, 19), (0, 2, 3), (7, 18, 19)):

        def make(
            generator: np.random.Generator, rows: int = rows, start: int = start, stop: int = stop
        ) -> Arguments:
            return normal(generator, rows, 2, 19), start, stop

        yield Case("take_columns", f"{start} to {stop} of {rows} rows", make, quick=rows == 3)


def join_columns_cases() -> Iterator[Case]:
    for rows, first, second in ((3, 5, 2), (1, 1, 33), (0, 2, 3)):

        def make(
            generator: np.random.Generator,
            rows: int = rows,
            first: int = first,
            second: int = second,
        ) -> Arguments:
            return normal(generator, rows, 2, first), normal(generator, rows, 2, second)

        yield Case("join_columns", f"{first} and {second}, {rows} rows", make, quick=rows == 3)
