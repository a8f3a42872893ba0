"""The kernels' handle of a weight, used where it lies or in panels."""

from __future__ import annotations

from typing import cast

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.packed import PackedMatrix
from firstlight.formats.base import Format, Weight

# name -> (values, bytes) of a block, of the storage formats that the kernels decode.
_FORMATS = _native.formats()

_KEPT = "_cpu_matrix"


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
        made = None
        if knows(weight.format) and weight.data.flags.c_contiguous:
            made = _native.Matrix(
                weight.format.name, weight.data, weight.rows, weight.columns, False
            )
        kept[_KEPT] = made
    return cast("_native.Matrix | None", kept[_KEPT])


def matrix_of(weight: Weight | PackedMatrix) -> _native.Matrix | None:
    """The handle of a weight; None where the kernels cannot read it."""
    return weight.matrix if isinstance(weight, PackedMatrix) else stored_matrix(weight)
