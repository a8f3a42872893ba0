"""What the extension needs of a block's parts and of the rows of a step.

It is checked and handed over once, and kept among the attributes of the block, or of the rows, and
so lives as long as those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_rows
from firstlight.backends.cpu.matrices import matrix_of
from firstlight.ops.paging import PagedRows
from firstlight.ops.parts import Norm, Product

Made = TypeVar("Made")
_KEPT = "_cpu_made"


class CannotMake(Exception):
    """The extension cannot read a part of a block."""


def made_of(given: Any, make: Callable[[Any], Made]) -> Made | None:
    """What `make` makes of it, made at the first use; None where the extension cannot read it."""
    kept = given.__dict__
    if _KEPT not in kept:
        try:
            kept[_KEPT] = make(given)
        except CannotMake:
            kept[_KEPT] = None
    made: Made | None = kept[_KEPT]
    return made


def rows_of(rows: PagedRows) -> _native.PagedRows:
    """The rows of a step."""
    if not are_rows(rows):
        raise CannotMake
    return _native.PagedRows(rows.row_starts, rows.positions, rows.page_table, rows.page_tokens)


def product_of(product: Product) -> _native.Product:
    """A weight, used where it lies or in panels, and its bias."""
    weight, bias = product.weight, product.bias
    matrix = matrix_of(weight)
    if matrix is None or not (bias is None or are_floats(bias)):
        raise CannotMake
    return _native.Product(matrix, bias)


def norm_of(norm: Norm | None) -> _native.Norm | None:
    """A norm, if there is one."""
    if norm is None:
        return None
    if not (norm.weight is None or are_floats(norm.weight)):
        raise CannotMake
    return _native.Norm(norm.size, norm.epsilon, norm.weight)
