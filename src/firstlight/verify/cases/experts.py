"""Cases of `experts_block` and of the ops that it is made of beside products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.formats.registry import get_format
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.gating import ClampedSwish, Gating
from firstlight.ops.parts import Norm, Product
from firstlight.ops.routing import Routing
from firstlight.verify.cases.attention import attention_cases
from firstlight.verify.cases.base import Arguments, Case, normal
from firstlight.verify.cases.scaled_weights import SCALED_WEIGHTS
from firstlight.verify.random_weights import random_weight

_VOCABULARY = 23

_ROUTINGS = (
    ("softmax", 8, Routing(2)),
    ("softmax, renormalised", 60, Routing(4, renormalised=True)),
    ("softmax in groups", 24, Routing(3, groups=6, groups_kept=2, scale=16.0)),
    ("sigmoid", 5, Routing(1, "sigmoid")),
    (
        "sigmoid in groups, corrected",
        32,
        Routing(5, "sigmoid", 8, 3, "two_largest", renormalised=True, scale=2.5),
    ),
    ("root of softplus", 16, Routing(6, "sqrt_softplus", renormalised=True, scale=1.5)),
    ("all of them", 3, Routing(3, renormalised=True)),
)


def route_cases() -> Iterator[Case]:
    for name, experts, routing in _ROUTINGS:
        for rows in (0, 1, 37):
            yield _route(name, experts, routing, rows)
    for name, experts, routing in _ROUTINGS[-2:]:
        yield _route_by_table(name, experts, routing)


def _route(name: str, experts: int, routing: Routing, rows: int) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        correction = normal(generator, experts) / 4 if "corrected" in name else None
        return normal(generator, rows, experts) * np.float32(3), routing, correction, None

    return Case("route", f"{name}, {rows} rows", make, quick=rows == 37)


def _route_by_table(name: str, experts: int, routing: Routing) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        chosen = generator.integers(0, experts, (11, routing.top_k)).astype(np.int32)
        return normal(generator, 11, experts), routing, None, chosen

    return Case("route", f"{name}, chosen by a table", make)


def add_rows_cases() -> Iterator[Case]:
    for rows, columns, count in ((0, 8, 0), (1, 1, 1), (5, 33, 0), (9, 257, 4), (40, 1027, 40)):
        yield _add_rows(rows, columns, count)


def _add_rows(rows: int, columns: int, count: int) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        indices = np.sort(generator.permutation(rows)[:count]).astype(np.int32)
        added = normal(generator, count, columns)
        return normal(generator, rows, columns), added, indices, normal(generator, count)

    return Case("add_rows", f"{count} to {rows} x {columns}", make, quick=count == 4)


def clamped_gate_cases() -> Iterator[Case]:
    for numbers in (ClampedSwish(7.0, 1.702, 1.0), ClampedSwish(1.5), ClampedSwish(0.25, 3.0)):
        for rows, columns in ((1, 7), (0, 5), (17, 1027)):
            for size in (1.0, 40.0):
                yield _clamped_gate(numbers, rows, columns, size)


def _clamped_gate(numbers: ClampedSwish, rows: int, columns: int, size: float) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        both = normal(generator, 2, rows, columns) * np.float32(size)
        return both[0].copy(), both[1].copy(), numbers

    name = f"{numbers}, {rows} x {columns} of size {size:g}"
    return Case("clamped_gate", name, make, quick=rows == 17 and size == 1.0)


def attention_with_sinks_cases() -> Iterator[Case]:
    """Those of `attention` that have no soft cap."""
    for case in attention_cases():
        if "soft cap" not in case.name:
            yield _with_sinks(case)


def _with_sinks(case: Case) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        *arguments, _ = case.make(generator)
        return *arguments, normal(generator, arguments[0].shape[1]) * np.float32(3)

    return Case("attention_with_sinks", case.name, make, quick=case.quick)


@dataclass(frozen=True)
class _Shape:
    """What sets one case apart from another; see `ExpertsBlock`.

    Attributes:
        formats: of gate, up and down, begun again where there are fewer; or names of
            SCALED_WEIGHTS.
        columns: of the residual stream, and `width` within an expert.
        shared: width of the shared expert; 0: none.
        here: first and end of the experts that the block has; None: all.
    """

    name: str
    experts: int
    routing: Routing
    formats: tuple[str, ...] = ("f32",)
    columns: int = 67
    width: int = 41
    rows: int = 7
    gating: Gating = "silu"
    biases: bool = False
    corrected: bool = False
    by_table: bool = False
    shared: int = 0
    shared_weighed: bool = False
    weighted_before: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    residual_scale: float = 1.0
    here: tuple[int, int] | None = None
    quick: bool = False


_SHAPES = (
    _Shape("softmax", 5, Routing(2, renormalised=True)),
    _Shape("one row", 8, Routing(3), rows=1),
    _Shape("no rows", 4, Routing(2), rows=0, shared=9),
    _Shape("every expert", 3, Routing(3), rows=2),
    _Shape(
        "groups, corrected, and a shared expert",
        12,
        Routing(3, "sigmoid", 4, 2, "two_largest", renormalised=True, scale=2.5),
        rows=19,
        corrected=True,
        shared=29,
        quick=True,
    ),
    _Shape("a weighed shared expert", 7, Routing(2), shared=64, shared_weighed=True, rows=33),
    _Shape(
        "biases and a clamped gate",
        6,
        Routing(2, renormalised=True),
        gating=ClampedSwish(0.75, 1.702, 1.0),
        biases=True,
    ),
    _Shape(
        "by a table",
        9,
        Routing(2, "sqrt_softplus", renormalised=True, scale=1.5),
        by_table=True,
        shared=11,
        gating=ClampedSwish(0.5),
    ),
    _Shape("weighted before", 4, Routing(1, "sigmoid"), weighted_before=True, post_norm=True),
    _Shape("some of the experts", 9, Routing(3), rows=11, shared=13, here=(4, 7), quick=True),
    _Shape("the first experts, weighted before", 6, Routing(2), weighted_before=True, here=(0, 2)),
    _Shape(
        "int8, some of the experts",
        *(9, Routing(3), ("q8_0",), 64, 32, 2),
        shared=32,
        here=(4, 7),
    ),
    _Shape("no norm, a residual scale", 4, Routing(2), pre_norm=False, residual_scale=0.22),
    _Shape("formats mixed", 4, Routing(2), ("q4_k", "q5_0", "q6_k"), 256, 512, 9, quick=True),
    _Shape("formats mixed, one row", 6, Routing(3), ("q4_k", "q8_0", "q4_0"), 256, 256, 1),
    _Shape("bf16", 5, Routing(2), ("bf16",), 192, 131, 21, shared=40, quick=True),
    _Shape("mxfp4", 4, Routing(2), ("mxfp4",), 64, 96, 5, quick=True),
    _Shape(
        "mxfp4, biases and a clamped gate, two rows",
        *(5, Routing(3, renormalised=True), ("mxfp4",), 64, 32, 2),
        gating=ClampedSwish(0.75, 1.702, 1.0),
        biases=True,
    ),
    _Shape(
        "int4 by few of many experts, and a weighed shared one",
        *(23, Routing(1, "sigmoid"), ("q4_1",), 32, 64, 33),
        shared=32,
        shared_weighed=True,
        residual_scale=0.5,
    ),
    _Shape(
        "8-bit floats, weighted before",
        *(4, Routing(2), ("f8_e4m3",), 67, 35, 17),
        weighted_before=True,
        post_norm=True,
        gating="gelu_tanh",
    ),
    _Shape("fp8 in blocks", 4, Routing(2), ("f8_e4m3 in blocks",), 70, 42, 9, shared=22),
    _Shape("nvfp4", 4, Routing(2), ("nvfp4 of two tensors, divided",), 66, 50, 9),
    _Shape("int4", 4, Routing(2), ("int4 with zeros", "int4, reordered"), 66, 50, 9),
)


def experts_block_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        yield _experts_block(shape)


def _experts_block(shape: _Shape) -> Case:
    columns = shape.columns
    size = np.float32(columns**-0.5)

    def make(generator: np.random.Generator) -> Arguments:
        def product(format: str, rows: int, inputs: int, biased: bool = shape.biases) -> Product:
            if format in SCALED_WEIGHTS:
                weight = SCALED_WEIGHTS[format](generator, rows, inputs)
            else:
                weight = random_weight(get_format(format), rows, inputs, generator)
            return Product(weight, normal(generator, rows) if biased else None)

        def expert(width: int) -> Expert:
            gate, up, down = (shape.formats * 3)[:3]
            return Expert(
                product(gate, width, columns), product(up, width, columns),
                product(down, columns, width),
            )  # fmt: skip

        def norm() -> Norm:
            return Norm(columns, 1e-6, (1 + normal(generator, columns) / 8) * size)

        top_k = shape.routing.top_k
        first, stop = shape.here or (0, shape.experts)
        table = generator.integers(0, shape.experts, (_VOCABULARY, top_k)).astype(np.int32)
        block = ExpertsBlock(
            router=product("f32", shape.experts, columns),
            routing=shape.routing,
            experts=tuple(expert(shape.width) for _ in range(first, stop)),
            gating=shape.gating,
            correction=normal(generator, shape.experts) / 4 if shape.corrected else None,
            hash_table=table if shape.by_table else None,
            shared=expert(shape.shared) if shape.shared else None,
            shared_gate=product("f32", 1, columns, False) if shape.shared_weighed else None,
            weighted_before=shape.weighted_before,
            pre_norm=norm() if shape.pre_norm else None,
            post_norm=norm() if shape.post_norm else None,
            residual_scale=shape.residual_scale,
            first=first,
        )
        x = normal(generator, shape.rows, columns)
        tokens = generator.integers(0, _VOCABULARY, shape.rows).astype(np.int32)
        return x if shape.pre_norm else x * size, block, tokens

    return Case("experts_block", shape.name, make, quick=shape.quick)
