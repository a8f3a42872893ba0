"""Cases of `attention_block`, `feed_forward_block` and `logits`: blocks as families make them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.formats.registry import get_format
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.elementwise import Activation
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.head import Head
from firstlight.ops.parts import Norm, Product
from firstlight.verify.cases.attention import Layout, layout_named, paged_rows, stream_pages
from firstlight.verify.cases.base import Arguments, Case, normal
from firstlight.verify.random_weights import random_weight

_EPSILON = 1e-6


@dataclass(frozen=True)
class _Shape:
    """What sets one case apart from another; see `AttentionBlock` and `FeedForwardBlock`.

    Attributes:
        formats: of the products, in turn; begun again where there are more products.
        columns: of the residual stream, and `width` within the feed-forward network.
        layout: of the rows of attention.
        stream: dtype of keys and values.
        head_norm: "head" norms each query and key head, "whole" each projection.
        turned: values of a head that turn; 0: no rotary embedding.
    """

    name: str
    formats: tuple[str, ...] = ("f32",)
    columns: int = 67
    width: int = 131
    rows: int = 3
    layout: str = "decode and prefill mixed"
    stream: str = "float32"
    heads: int = 4
    key_value_heads: int = 2
    head_size: int = 16
    biases: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    head_norm: str = ""
    turned: int = 16
    interleaved: bool = False
    window: int | None = None
    soft_cap: float | None = None
    residual_scale: float = 1.0
    activation: Activation = "silu"
    quick: bool = False


_MIXED_WEIGHTS = ("q4_k", "q4_k", "q6_k", "q5_0")

_SHAPES = (
    _Shape("plain", rows=5),
    _Shape("one row", rows=1, layout="one token", biases=True),
    _Shape("no rows", rows=0, layout="no rows"),
    _Shape("biases", rows=2, biases=True, layout="decode batch", activation="gelu"),
    _Shape("prefill", rows=37, layout="prefill", interleaved=True, quick=True),
    _Shape("a chunk of a prefill", rows=29, layout="a chunk of a prefill", stream="bfloat16"),
    _Shape(
        "norms of heads and of the result",
        head_norm="head",
        post_norm=True,
        activation="gelu_tanh",
        layout="window",
        window=16,
        quick=True,
    ),
    _Shape(
        "norms of whole projections and of the result alone",
        head_norm="whole",
        pre_norm=False,
        post_norm=True,
    ),
    _Shape("soft cap", soft_cap=5.0, post_norm=True, activation="relu", layout="soft cap"),
    _Shape("residual scale", residual_scale=0.22, turned=0),
    _Shape("a part of each head turns", turned=6, head_norm="head"),
    _Shape("one head", heads=1, key_value_heads=1, head_size=7, turned=6, columns=1, width=1),
    _Shape("formats mixed", _MIXED_WEIGHTS, 256, 512, layout="decode batch", heads=16, quick=True),
    _Shape("formats mixed, one row", _MIXED_WEIGHTS, 512, 256, 1, "one token", heads=16),
    _Shape("bf16", ("bf16",), 192, 515, 4, post_norm=True, quick=True),
    _Shape("bf16, one row", ("bf16",), 1027, 259, 1, "one token"),
    _Shape("f16", ("f16",), 96, 99, 17, "prefill", head_norm="head"),
    _Shape("q8_0", ("q8_0",), 96, 160, 6, "decode batch", "bfloat16", head_norm="head", quick=True),
    _Shape("q4_0, one row", ("q4_0",), 640, 2048, 1, "one token", head_size=32, turned=32),
    _Shape("iq4_nl", ("iq4_nl",), 64, 96),
    _Shape("mxfp4 and nvfp4", ("mxfp4", "nvfp4"), 128, 192, 3),
    _Shape("iq3_s", ("iq3_s",), 256, 256, heads=16),
)


def attention_block_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _attention_block(shape)


def _attention_block(shape: _Shape) -> Case:
    layout = layout_named(shape.layout)

    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout, generator)
        entries = (pages, layout.page_tokens, shape.key_value_heads, shape.head_size)
        keys, values = (stream_pages(generator, entries, shape.stream) for _ in range(2))
        count, turned = len(rows.positions), shape.turned // 2
        angles = generator.uniform(0, 6.3, (count, turned)).astype(np.float32)
        table = np.stack([np.cos(angles), np.sin(angles)], axis=1) if turned else None
        x = _stream(shape, count, generator)
        return x, _make_attention(shape, generator, layout), keys, values, rows, table

    return Case("attention_block", shape.name, make, quick=shape.quick)


def _make_attention(
    shape: _Shape, generator: np.random.Generator, layout: Layout
) -> AttentionBlock:
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    formats = shape.formats * 4
    norms = {"": (0, 0), "head": (shape.head_size,) * 2, "whole": (query, key)}[shape.head_norm]
    return AttentionBlock(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_size=shape.head_size,
        query=_product(shape, formats[0], query, shape.columns, generator),
        key=_product(shape, formats[1], key, shape.columns, generator),
        value=_product(shape, formats[2], key, shape.columns, generator),
        output=_product(shape, formats[3], shape.columns, query, generator),
        scale=shape.head_size**-0.5,
        pre_norm=_pre_norm(shape, generator),
        post_norm=_norm(shape.columns, generator) if shape.post_norm else None,
        query_norm=_norm(norms[0], generator) if norms[0] else None,
        key_norm=_norm(norms[1], generator) if norms[1] else None,
        window=layout.window,
        soft_cap=shape.soft_cap,
        interleaved=shape.interleaved,
        residual_scale=shape.residual_scale,
    )


def feed_forward_block_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _feed_forward_block(shape)


def _feed_forward_block(shape: _Shape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        formats = shape.formats * 3
        block = FeedForwardBlock(
            gate=_product(shape, formats[0], shape.width, shape.columns, generator),
            up=_product(shape, formats[1], shape.width, shape.columns, generator),
            down=_product(shape, formats[2], shape.columns, shape.width, generator),
            activation=shape.activation,
            pre_norm=_pre_norm(shape, generator),
            post_norm=_norm(shape.columns, generator) if shape.post_norm else None,
            residual_scale=shape.residual_scale,
        )
        return _stream(shape, shape.rows, generator), block

    return Case("feed_forward_block", shape.name, make, quick=shape.quick)


def logits_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _logits(shape)


def _logits(shape: _Shape) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        head = Head(
            product=_product(shape, shape.formats[0], 211, shape.columns, generator),
            norm=_pre_norm(shape, generator),
            scale=shape.residual_scale,
            soft_cap=shape.soft_cap,
        )
        count = shape.rows
        wanted = generator.permutation(count)[: -(-count // 2)].astype(np.int32)
        return _stream(shape, count, generator), head, np.sort(wanted)

    return Case("logits", shape.name, make, quick=shape.quick)


def _stream(shape: _Shape, count: int, generator: np.random.Generator) -> np.ndarray:
    """x. Where it is not normed its size is what a norm would make of it."""
    x = normal(generator, count, shape.columns)
    return x if shape.pre_norm else x * _input_size(shape)


def _input_size(shape: _Shape) -> np.float32:
    """Of a product's input, so that its results are about one: scores of a few hundred would make
    a softmax of any rounding."""
    return np.float32(shape.columns**-0.5)


def _pre_norm(shape: _Shape, generator: np.random.Generator) -> Norm | None:
    if not shape.pre_norm:
        return None
    weight = (1 + normal(generator, shape.columns) / 8) * _input_size(shape)
    return Norm(shape.columns, _EPSILON, weight)


def _norm(size: int, generator: np.random.Generator) -> Norm:
    return Norm(size, _EPSILON, 1 + normal(generator, size) / 8)


def _product(
    shape: _Shape, format: str, rows: int, columns: int, generator: np.random.Generator
) -> Product:
    weight = random_weight(get_format(format), rows, columns, generator)
    return Product(weight, normal(generator, rows) if shape.biases else None)
