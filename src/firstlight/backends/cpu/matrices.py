"""The kernels' handle of a weight, used where it lies or in panels."""

from __future__ import annotations

from typing import cast

import numpy as np

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats
from firstlight.backends.cpu.packed import PackedMatrix
from firstlight.formats.base import BlockScales, Format, Weight
from firstlight.formats.codes import E2M1
from firstlight.formats.float8 import F8_E4M3
from firstlight.formats.group_scales import GroupScales

# name -> (values, bytes) of a block, of the storage formats that the kernels decode.
_FORMATS = _native.formats()

_KEPT = "_cpu_matrix"

# Columns that share a scale in NVFP4.
_FLOAT4_GROUP = 16

# Of a block of scales; more than any matrix has.
_MOST_ROWS = 1 << 40


def knows(format: Format) -> bool:
    """Whether the kernels decode this format."""
    return _FORMATS.get(format.name) == (format.block_values, format.block_bytes)


def stored_matrix(weight: Weight) -> _native.Matrix | None:
    """The handle of a weight, made at the first use; None where the kernels cannot read it.

    It is kept among the weight's own attributes, as functools.cached_property would keep it, so
    that it lives as long as the weight.
    """
    kept = weight.__dict__
    if _KEPT not in kept:
        kept[_KEPT] = matrix_in_place(weight) if weight.data.flags.c_contiguous else None
    return cast("_native.Matrix | None", kept[_KEPT])


def matrix_in_place(weight: Weight) -> _native.Matrix | None:
    """A handle of a contiguous weight, where the kernels can read it and its scales."""
    name, rows, columns = weight.format.name, weight.rows, weight.columns
    scales = weight.scales
    if weight.format is E2M1:
        return _float4_matrix(weight)
    if not knows(weight.format):
        return None
    if scales is None:
        return _native.Matrix(name, weight.data, rows, columns, False)
    if not isinstance(scales, BlockScales) or weight.format.name != F8_E4M3.name:
        return None
    if not are_floats(scales.values) or (scales.columns % 32 and scales.columns < columns):
        return None
    return _native.Matrix(
        name,
        weight.data,
        rows,
        columns,
        False,
        scales.values,
        min(scales.rows, _MOST_ROWS),
        min(scales.columns, _MOST_ROWS),
        scales.first_row,
    )


def _float4_matrix(weight: Weight) -> _native.Matrix | None:
    """Of NVFP4 as checkpoints store it: E2M1 with scales in E4M3, and a factor of all of them."""
    scales = weight.scales
    readable = (
        isinstance(scales, GroupScales)
        and scales.format.name == F8_E4M3.name
        and scales.group == _FLOAT4_GROUP
        and weight.columns % _FLOAT4_GROUP == 0
        and scales.group_of is None
        and scales.zeros is None
        and not scales.zero
        and (scales.factor is None or scales.divisor is None)
    )
    if not readable or not isinstance(scales, GroupScales):
        return None
    matrix = _native.Matrix(E2M1.name, weight.data, weight.rows, weight.columns, False)
    factor = scales.divisor if scales.factor is None else scales.factor
    stored = scales.data[scales.first_row : scales.first_row + weight.rows]
    matrix.scale_groups(
        np.ascontiguousarray(stored),
        1.0 if factor is None else float(factor),
        scales.divisor is not None,
    )
    return matrix


def matrix_of(weight: Weight | PackedMatrix) -> _native.Matrix | None:
    """The handle of a weight; None where the kernels cannot read it."""
    return weight.matrix if isinstance(weight, PackedMatrix) else stored_matrix(weight)
