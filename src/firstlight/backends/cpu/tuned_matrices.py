"""How products with each weight are done, told to the weights' own handles.

A handle is what every product goes through, alone, in a group or within a fused block. So what the
tuner chose for a shape is kept there and not in dispatch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.matrices import matrix_of
from firstlight.backends.cpu.packed import PackedMatrix
from firstlight.backends.kernel import Parameter, Value
from firstlight.formats.base import Floats, Weight
from firstlight.ops.shape import Shape, rows_of_range, rows_range, storage

# Fields of LinearTuning in native/kernel_table.hpp; 0 leaves the choice to the kernel.
LINEAR_PARAMETERS = (
    Parameter("block_rows", (0, 48, 96, 24, 192), 0),
    Parameter("panels", (0, 2, 4, 1, 8, 16), 0),
    Parameter("fetch_ahead", (0, 4096, 24576), 0),
)
_UNTUNED: dict[str, Value] = {parameter.name: parameter.default for parameter in LINEAR_PARAMETERS}

# Up to so many rows of x a product is bound by memory, where fetching ahead can help.
_FEW_ROWS = 16
_MOST_ROWS = (1 << 31) - 1

_Packed = Weight | PackedMatrix


def allows_linear(
    x: Floats,
    weight: _Packed,
    bias: Floats | None = None,
    *,
    block_rows: int,
    panels: int,
    fetch_ahead: int = 0,
) -> bool:
    """Whether such a tuning differs from others for so many rows of x."""
    if fetch_ahead and len(x) > _FEW_ROWS:
        return False
    return block_rows < len(x)


def tune_matrix(matrix: _native.Matrix, rows: str, values: Mapping[str, Any]) -> None:
    """Have products with a number of rows in that range (ops/shape.py) done so."""
    least, most = rows_of_range(rows)
    matrix.tune(max(1, least), most or _MOST_ROWS, **values)


def tune_for(matrix: _native.Matrix, count: int, values: Mapping[str, Any]) -> None:
    """The same for the range that `count` rows belong to."""
    tune_matrix(matrix, rows_range(count), values)


class TunedMatrices:
    """The weights of one backend, and what was chosen for them."""

    def __init__(self) -> None:
        self._weights: dict[Shape, list[weakref.ref[_Packed]]] = {}
        self._values: dict[Shape, Mapping[str, Any]] = {}

    def remember(self, weight: _Packed) -> None:
        """A weight that products may come with from now on."""
        key: Shape = (*storage(weight), *weight.shape)
        alive = [each for each in self._weights.get(key, ()) if each() is not None]
        self._weights[key] = [*alive, weakref.ref(weight)]
        for shape, values in self._values.items():
            matrix = matrix_of(weight) if shape[:-1] == key else None
            if matrix is not None:
                tune_matrix(matrix, str(shape[-1]), values)

    def tune(self, shape: Shape, values: Mapping[str, Any] | None) -> None:
        """Have products of a shape of `linear` done so; None: as without tuning."""
        if values is None:
            self._values.pop(shape, None)
        else:
            self._values[shape] = values
        for weight in [each() for each in self._weights.get(shape[:-1], ())]:
            matrix = None if weight is None else matrix_of(weight)
            if matrix is not None:
                tune_matrix(matrix, str(shape[-1]), values or _UNTUNED)
