"""Weight: its rows, its slices, and data that contradict its shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from firstlight.errors import FormatError
from firstlight.formats.base import BlockScales, Weight
from firstlight.formats.codes import U8
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.registry import get_format, known_formats
from tests.support.weights import random_weight


@pytest.mark.parametrize("name", known_formats())
def test_rows_decode_alike_alone_and_together(name: str) -> None:
    columns = 2 * get_format(name).block_values
    weight = random_weight(name, 7, columns, seed=1)
    values = weight.values()
    assert values.shape == weight.shape == (7, columns)
    assert (weight.rows, weight.columns) == (7, columns)
    assert weight.nbytes == 7 * get_format(name).row_bytes(columns)
    assert np.array_equal(weight.decode(2, 5), values[2:5])
    assert np.array_equal(weight.decode(6), values[6:])
    assert weight.decode(3, 3).shape == (0, columns)
    part = weight.row_slice(2, 5)
    assert part.shape == (3, columns)
    assert np.shares_memory(part.data, weight.data)
    assert np.array_equal(part.values(), values[2:5])
    assert np.array_equal(part.row_slice(1, 2).values(), values[3:4])
    assert weight.row_slice(4, 4).values().shape == (0, columns)


def test_earlier_axes_are_rows() -> None:
    format = get_format("q8_0")
    values = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    data = format.encode(values).reshape(6, -1)
    weight = Weight(format, (2, 3, 64), data)
    assert weight.rows == 6
    assert weight.values().shape == (2, 3, 64)
    assert np.array_equal(weight.values()[1, 2], weight.decode(5, 6)[0])


@pytest.mark.parametrize(("shape", "rows"), [((5,), 1), ((), 1), ((0, 5), 0), ((3, 0), 3)])
def test_vectors_scalars_and_empty_tensors(shape: tuple[int, ...], rows: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    columns = shape[-1] if shape else 1
    weight = Weight(get_format("f32"), shape, values.reshape(rows, columns).view(np.uint8))
    assert weight.rows == rows
    assert np.array_equal(weight.values(), values)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 68), np.uint8),
        np.zeros((3, 67), np.uint8),
        np.zeros(204, np.uint8),
        np.zeros((3, 68), np.int8),
        np.zeros((3, 1, 68), np.uint8),
    ],
)
def test_data_that_contradict_the_shape_are_refused(data: np.ndarray) -> None:
    with pytest.raises(FormatError, match=r"blk\.0 of shape \[3, 64\] in q8_0"):
        Weight(get_format("q8_0"), (3, 64), data, "blk.0")


def test_a_slice_past_the_end_is_refused() -> None:
    with pytest.raises(FormatError, match=r"shape \[3, 32\]"):
        random_weight("q8_0", 4, 32).row_slice(2, 5)


@pytest.mark.parametrize("name", known_formats())
def test_columns_are_divided_between_blocks(name: str) -> None:
    block = get_format(name).block_values
    weight = random_weight(name, 3, 5 * block, seed=2)
    assert weight.column_unit == block
    part = weight.column_slice(block, 4 * block)
    assert part.shape == (3, 3 * block)
    assert np.array_equal(part.values(), weight.values()[:, block : 4 * block])
    assert weight.column_slice(0, 0).values().shape == (3, 0)
    if block > 1:
        with pytest.raises(FormatError, match=f"divide its blocks of {block}"):
            weight.column_slice(1, block)


def test_columns_have_their_scales() -> None:
    generator = np.random.default_rng(3)
    codes = random_weight("f8_e4m3", 5, 22, seed=4)
    blocks = BlockScales(generator.random((3, 6), np.float32), 2, 4, first_row=1)
    scaled = replace(codes, scales=blocks)
    assert scaled.column_unit == 4
    for first, stop in ((0, 8), (8, 20), (12, 22), (20, 22)):
        part = scaled.column_slice(first, stop)
        assert np.array_equal(part.values(), scaled.values()[:, first:stop])
    with pytest.raises(FormatError, match="columns 0 to 21 divide"):
        scaled.column_slice(0, 21)


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_columns_have_the_scales_of_their_groups(neighbours: bool, zeros: bool) -> None:
    generator = np.random.default_rng(5)
    format = get_format("f16")
    stored = generator.random((4, 3)).astype(np.float16).view(np.uint8)
    scales = GroupScales(
        stored,
        format,
        4,
        zero=3,
        zeros=generator.integers(0, 9, (4, 3)).astype(np.int16) if zeros else None,
        group_of=None if neighbours else generator.integers(0, 3, 12),
        first_row=1,
    )
    data = generator.integers(0, 255, (3, 12)).astype(np.uint8)
    weight = Weight(U8, (3, 12), data, scales=scales)
    assert weight.column_unit == (4 if neighbours else 1)
    part = weight.column_slice(4, 12)
    assert np.array_equal(part.values(), weight.values()[:, 4:12])
