"""Cases of attention over selected positions: the choice, the attention, and the block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from firstlight.ops.attention import round_entries
from firstlight.ops.parts import LayerNorm, Product
from firstlight.ops.select_entries import select_entries
from firstlight.ops.sparse_latent_attention_block import Indexer, SparseLatentAttentionBlock
from firstlight.verify.cases.attention import paged_rows, stream_pages
from firstlight.verify.cases.base import Arguments, Case, StreamArgument, normal
from firstlight.verify.cases.latent import LatentShape, latent_block, latent_weight, layout_of


@dataclass(frozen=True)
class _Shape:
    """An indexer beside latent attention of a shape; see `Indexer`."""

    latent: LatentShape
    heads: int = 5
    size: int = 9
    top_k: int = 16

    @property
    def name(self) -> str:
        return f"{self.latent.name}, {self.top_k} of them"


_MIXED = LatentShape("mixed")
_SHAPES = (
    _Shape(replace(_MIXED, quick=True)),
    _Shape(_MIXED, top_k=1),
    _Shape(_MIXED, top_k=1000),
    _Shape(_MIXED, top_k=101),
    _Shape(LatentShape("no rows", sequences=())),
    _Shape(LatentShape("one token", sequences=((0, 1),))),
    _Shape(LatentShape("border", sequences=((14, 4), (15, 1), (16, 1), (3, 20)), quick=True)),
    _Shape(LatentShape("decode", sequences=((70, 1), (200, 1)), stream="bfloat16", quick=True)),
    _Shape(
        LatentShape(
            *("one to seventeen rows", "f32", ((60, 1), (29, 2), (14, 3), (40, 17))),
            heads=17,
            stream="bfloat16",
        ),
        top_k=20,
    ),
    _Shape(LatentShape("one head", heads=1), heads=1, size=7),
    _Shape(LatentShape("bf16", "bf16", stream="bfloat16"), top_k=20),
    # V3.2's sizes of index heads.
    _Shape(LatentShape("published sizes", "bf16", ((300, 2), (3, 1)), 64), 64, 128, 128),
)


def select_positions_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _select_positions(shape)


def _select_positions(shape: _Shape) -> Case:
    """Small whole numbers, whose scores any order of sums gives exactly: many are equal."""

    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout_of(shape.latent), generator)
        count, page_tokens = len(rows.positions), shape.latent.page_tokens

        def whole(*sizes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            return generator.integers(-2, 3, sizes).astype(np.float32)

        keys = whole(pages, page_tokens, shape.size)
        dtype = np.dtype(np.uint16 if shape.latent.stream == "bfloat16" else np.float32)
        queries, weights = whole(count, shape.heads, shape.size), whole(count, shape.heads)
        return queries, weights, StreamArgument(round_entries(keys, dtype)), rows, 1, shape.top_k

    return Case("select_entries", shape.name, make, quick=shape.latent.quick)


def selected_latent_attention_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _selected_latent_attention(shape)


def _selected_latent_attention(shape: _Shape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        latent = shape.latent
        rows, pages = paged_rows(layout_of(latent), generator)
        count, size = len(rows.positions), latent.latent + latent.rope
        keys = stream_pages(generator, (pages, latent.page_tokens, shape.size), latent.stream)
        selected = select_entries(
            normal(generator, count, shape.heads, shape.size),
            normal(generator, count, shape.heads),
            keys.pages,
            rows,
            1,
            shape.top_k,
        )
        queries = normal(generator, count, latent.heads, size)
        entries = stream_pages(generator, (pages, latent.page_tokens, size), latent.stream)
        return queries, entries, latent.latent, rows, selected, size**-0.5

    return Case("selected_latent_attention", shape.name, make, quick=shape.latent.quick)


def sparse_latent_attention_block_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _block(shape)


def _block(shape: _Shape) -> Case:
    """Of normal values, whose scores lie further apart than float32 rounds."""

    def make(generator: np.random.Generator) -> Arguments:
        latent = shape.latent
        rows, pages = paged_rows(layout_of(latent), generator)
        count = len(rows.positions)
        angles = generator.uniform(0, 6.3, (count, latent.rope // 2)).astype(np.float32)
        table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x = normal(generator, count, latent.columns)
        pages_of = (pages, latent.page_tokens)
        entries = stream_pages(generator, (*pages_of, latent.latent + latent.rope), latent.stream)
        attention = latent_block(latent, generator)
        block = SparseLatentAttentionBlock(attention, _indexer(shape, generator))
        keys = stream_pages(generator, (*pages_of, shape.size), latent.stream)
        return x, block, entries, keys, rows, table

    return Case("sparse_latent_attention_block", shape.name, make, quick=shape.latent.quick)


def _indexer(shape: _Shape, generator: np.random.Generator) -> Indexer:
    latent, size = shape.latent, shape.size

    def product(rows: int, columns: int) -> Product:
        return Product(latent_weight(latent.format, rows, columns, generator))

    return Indexer(
        heads=shape.heads,
        size=size,
        top_k=shape.top_k,
        query=product(shape.heads * size, latent.low_rank),
        key=product(size, latent.columns),
        key_norm=LayerNorm(
            size,
            1e-6,
            generator.uniform(0.5, 1.5, size).astype(np.float32),
            normal(generator, size),
        ),
        weights=product(shape.heads, latent.columns),
    )
