"""Some columns of a stored matrix: as they lie where no block is divided, decoded where one is."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.formats.base import Format, Weight
from firstlight.formats.registry import get_format
from firstlight.model.matrices import kept_matrices
from firstlight.model.stored import check_source, column_unit, stored_format, stored_rows
from firstlight.model.tensor_source import Stack, TensorSource
from tests.support.weights import random_weight


@dataclass
class Files:
    """`TensorFiles` of matrices in memory."""

    weights: dict[str, Weight]
    location: str = "files"
    tensors: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = {name: SimpleNamespace(shape=w.shape) for name, w in self.weights.items()}

    def format_of(self, name: str) -> Format:
        return self.weights[name].format

    def weight(self, name: str) -> Weight:
        return self.weights[name]

    def rows(self, name: str, start: int, stop: int) -> Weight:
        return self.weights[name].row_slice(start, stop)

    def integers(self, name: str) -> NDArray[Any]:
        raise NotImplementedError

    def release(self, name: str, start: int, stop: int) -> None:
        """Nothing is mapped."""


def columns(first: int, stop: int, of: int, **more: Any) -> TensorSource:
    return TensorSource("matrix", (6, stop - first), first_column=first, all_columns=of, **more)


@pytest.mark.parametrize(
    ("first", "stop", "format"), [(32, 96, "q8_0"), (64, 128, "q8_0"), (0, 40, "f32")]
)
def test_columns_are_kept_as_stored_unless_a_block_is_divided(
    first: int, stop: int, format: str
) -> None:
    weight = random_weight("q8_0", 6, 128)
    files, source = Files({"matrix": weight}), columns(first, stop, 128)
    check_source(source, files, "family")
    assert column_unit(source, files) == 32
    assert stored_format(source, files) == get_format(format)
    found = stored_rows(source, files, 1, 5)
    assert found.format.name == format
    assert np.array_equal(found.values(), weight.values()[1:5, first:stop])
    (kept,) = kept_matrices(SimpleNamespace(sources=lambda: (source,)), files)  # type: ignore[arg-type]
    assert kept.in_place
    assert kept.nbytes == 6 * get_format(format).row_bytes(stop - first)


def test_columns_of_rows_that_lie_otherwise() -> None:
    values = np.arange(2 * 9 * 12, dtype=np.float32).reshape(2, 9, 12)
    data = values.view(np.uint8).reshape(18, -1)
    files = Files({"matrix": Weight(get_format("f32"), values.shape, data)})
    # Every other row of the second of two matrices, stored [columns, rows].
    source = columns(
        3, 7, 9, first_row=1, fused_rows=12, row_step=2, stack=Stack(1, 2, transposed=True)
    )
    assert source.stored_shape == (2, 9, 12)
    found = stored_rows(source, files, 0, 6)
    assert np.array_equal(found.values(), values[1].T[1::2, 3:7])
