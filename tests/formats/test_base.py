"""Weight: its rows, its slices, and data that contradict its shape."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.errors import FormatError
from firstlight.formats.base import Weight
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
