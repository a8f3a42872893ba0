"""Cases of `linear` and `embed`: every storage format, awkward shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstlight.formats.base import BlockScales, Format, Weight
from firstlight.formats.codes import E2M1
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.registry import get_format, known_formats
from firstlight.verify.cases.base import Arguments, Case, normal
from firstlight.verify.cases.scaled_weights import SCALED_WEIGHTS, MakeWeight
from firstlight.verify.random_weights import random_weight

# (rows of x, rows of the weight, columns as blocks of 256 values); with formats of single values
# a few columns come on top, so that no vector width divides the row.
_SHAPES = (
    (1, 1, 1),
    (1, 67, 2),
    (2, 3, 1),
    (3, 17, 1),
    (7, 18, 5),
    (5, 33, 4),
    (7, 1, 9),
    (17, 130, 3),
    (67, 37, 2),
    (0, 5, 1),
    (3, 0, 1),
)
_QUICK_SHAPES = {(1, 67, 2), (7, 18, 5)}
# (rows of x, rows of the weight, columns), of weights whose scales lie elsewhere: blocks are cut
# short by the last row and column, and a group may have more columns than there are.
_SCALED_SHAPES = ((1, 1, 2), (5, 33, 70), (1, 17, 256), (19, 5, 130), (0, 3, 32))
_QUICK_SCALED = (5, 33, 70)
_NARROW_COLUMNS = (1, 3, 17, 33, 1025)

# fp8 with scales of blocks: (rows of x, rows of the weight, columns, rows and columns of a block,
# rows of the first block that lie before the weight).
_IN_BLOCKS = (
    (1, 130, 384, 128, 128, 0),
    (1, 21, 2100, 128, 128, 120),
    (2, 67, 1664, 128, 128, 0),
    (3, 9, 65, 4, 32, 3),
    (4, 50, 3100, 16, 96, 5),
    (6, 131, 300, 64, 128, 0),
    (7, 33, 1100, 1, 1100, 0),
    (23, 55, 1030, 128, 1030, 64),
    (29, 130, 640, 128, 128, 0),
    (5, 3, 2816, 8, 1408, 0),
)
# NVFP4: (rows of x, rows of the weight, columns, whether scales are divided by the factor).
_FLOAT4 = (
    (1, 21, 512, True),
    (1, 5, 16, False),
    (2, 67, 1552, False),
    (6, 33, 336, True),
    (19, 50, 2320, True),
)
_QUICK_IN_BLOCKS = {(1, 130, 384, 128, 128, 0), (6, 131, 300, 64, 128, 0)}


def linear_cases() -> Iterator[Case]:
    for name in known_formats():
        for shape in _SHAPES:
            yield _linear(get_format(name), *shape, bias=shape[0] % 2 == 1)
        if get_format(name).block_values == 1:
            for columns in _NARROW_COLUMNS:
                yield _linear_of_columns(get_format(name), 3, 5, columns)
    for name, make_weight in SCALED_WEIGHTS.items():
        for shape in _SCALED_SHAPES:
            yield _linear_scaled(name, make_weight, *shape)
    yield _linear_of_columns(get_format("f32"), 1, 4, 0)
    yield _linear_of_columns(get_format("f32"), 3, 4, 0)
    for case in _IN_BLOCKS:
        yield _linear_in_blocks(*case)
    for count, rows, columns, divides in _FLOAT4:
        yield _linear_float4(count, rows, columns, divides)
    yield Case("linear", "not finite", _not_finite)
    yield Case("linear", "unaligned weight", _unaligned)
    yield Case("linear", "large columns", _large_columns)


def _linear(format: Format, count: int, rows: int, blocks: int, bias: bool) -> Case:
    columns = 256 * blocks
    if format.block_values == 1:
        columns += 3
    elif format.block_values < 256:
        columns += format.block_values * (blocks % 2)

    def make(generator: np.random.Generator) -> Arguments:
        x = normal(generator, count, columns)
        weight = random_weight(format, rows, columns, generator)
        if rows == 1:
            # The tolerance is measured by the largest result; one alone must not cancel to little.
            x += weight.values()
        return x, weight, normal(generator, rows) if bias else None

    name = f"{format.name} {count} x {columns} by {rows}{' and bias' if bias else ''}"
    return Case("linear", name, make, quick=(count, rows, blocks) in _QUICK_SHAPES)


def _linear_scaled(name: str, make_weight: MakeWeight, count: int, rows: int, columns: int) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x, weight = normal(generator, count, columns), make_weight(generator, rows, columns)
        return x + weight.values() if rows == 1 else x, weight, None

    case = f"{name} {count} x {columns} by {rows}"
    return Case("linear", case, make, quick=(count, rows, columns) == _QUICK_SCALED)


def _linear_of_columns(format: Format, count: int, rows: int, columns: int) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        return normal(generator, count, columns), random_weight(format, rows, columns, generator)

    return Case("linear", f"{format.name} {count} x {columns} by {rows} narrow", make)


def _linear_in_blocks(
    count: int, rows: int, columns: int, block_rows: int, block_columns: int, before: int
) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x = normal(generator, count, columns)
        return x, _in_blocks(rows, columns, block_rows, block_columns, before, generator), None

    name = (
        f"f8_e4m3 {count} x {columns} by {rows}, blocks of {block_rows} by {block_columns}"
        f"{f' from row {before}' if before else ''}"
    )
    quick = (count, rows, columns, block_rows, block_columns, before) in _QUICK_IN_BLOCKS
    return Case("linear", name, make, quick=quick)


def _in_blocks(
    rows: int,
    columns: int,
    block_rows: int,
    block_columns: int,
    before: int,
    generator: np.random.Generator,
) -> Weight:
    """fp8 with scales of blocks, the first of which begins so many rows before the weight."""
    stored = random_weight(get_format("f8_e4m3"), rows, columns, generator)
    grid = (-(-(before + rows) // block_rows), -(-columns // block_columns))
    values = generator.uniform(0.25, 2.0, grid).astype(np.float32)
    scales = BlockScales(values, block_rows, block_columns, before)
    return Weight(stored.format, stored.shape, stored.data, stored.name, scales)


def _linear_float4(count: int, rows: int, columns: int, divides: bool) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x = normal(generator, count, columns)
        return x, _float4(rows, columns, divides, generator), normal(generator, rows)

    name = f"nvfp4 in place {count} x {columns} by {rows} and bias"
    return Case("linear", name, make, quick=count in (1, 6))


def _float4(rows: int, columns: int, divides: bool, generator: np.random.Generator) -> Weight:
    """E2M1 with scales in E4M3, as checkpoints store NVFP4."""
    stored = random_weight(E2M1, rows, columns, generator)
    float8 = get_format("f8_e4m3")
    scales = random_weight(float8, rows, columns // 16, generator).data & np.uint8(0x7F)
    factor = np.float32(generator.uniform(0.3, 3.0))
    groups = GroupScales(
        scales,
        float8,
        16,
        factor=None if divides else factor,
        divisor=factor if divides else None,
    )
    return Weight(stored.format, stored.shape, stored.data, stored.name, groups)


def _not_finite(generator: np.random.Generator) -> Arguments:
    """One row has a NaN and one an infinity; the others must stay as they are."""
    x = normal(generator, 9, 96)
    x[2, 40], x[5, 7] = np.nan, np.inf
    return x, random_weight(get_format("f32"), 13, 96, generator)


def _unaligned(generator: np.random.Generator) -> Arguments:
    """A file may put a tensor at any byte."""
    weight = random_weight(get_format("f32"), 9, 65, generator)
    shifted = np.empty(weight.nbytes + 1, np.uint8)[1:]
    shifted[:] = weight.data.reshape(-1)
    shifted.flags.writeable = False
    data = shifted.reshape(weight.data.shape)
    return normal(generator, 2, 65), type(weight)(weight.format, weight.shape, data)


def _large_columns(generator: np.random.Generator) -> Arguments:
    weight = random_weight(get_format("bf16"), 6, 28672, generator)
    return normal(generator, 3, 28672), weight


def embed_cases() -> Iterator[Case]:
    for name in known_formats():
        for count in (0, 1, 13):
            yield _embed(get_format(name), count)
    for name, make_weight in SCALED_WEIGHTS.items():
        yield _embed_scaled(name, make_weight)
    yield Case("embed", "f8_e4m3 with scales", _embed_in_blocks, quick=True)
    yield Case("embed", "nvfp4 in place", _embed_float4, quick=True)


def _embed(format: Format, count: int) -> Case:
    columns = 512 if format.block_values > 1 else 69

    def make(generator: np.random.Generator) -> Arguments:
        table = random_weight(format, 29, columns, generator)
        token_ids = generator.integers(0, 29, count).astype(np.int32)
        token_ids[: min(count, 2)] = (28, 0)[:count]
        return table, token_ids

    return Case("embed", f"{format.name} {count} tokens", make, quick=count == 13)


def _embed_scaled(name: str, make_weight: MakeWeight) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        token_ids = generator.integers(0, 29, 7).astype(np.int32)
        return make_weight(generator, 29, 70), token_ids

    return Case("embed", f"{name} 7 tokens", make)


def _embed_in_blocks(generator: np.random.Generator) -> Arguments:
    token_ids = generator.integers(0, 29, 7).astype(np.int32)
    return _in_blocks(29, 300, 8, 128, 3, generator), token_ids


def _embed_float4(generator: np.random.Generator) -> Arguments:
    token_ids = generator.integers(0, 29, 7).astype(np.int32)
    return _float4(29, 320, True, generator), token_ids
