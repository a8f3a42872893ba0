"""Products of each head with rows of its own in one weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from firstlight.formats.base import Floats, Weight
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.shape import Shape, rows_range, storage


@dataclass(frozen=True, eq=False)
class HeadProduct:
    """A part of a weight for `head_linear`: the weight, and which rows of each head are meant."""

    weight: Any
    first: int
    size: int
    transposed: bool = False


def _head_linear_cost(x: Floats, weight: Weight, first: int, size: int, transposed: bool) -> Cost:
    count, heads, _ = x.shape
    rows, columns = weight.shape
    values = heads * size * columns
    moved = weight.nbytes * heads * size // max(1, rows)
    return Cost(moved + 4 * count * heads * (size + columns), 2 * count * values)


def _head_linear_shape(x: Floats, weight: Weight, first: int, size: int, transposed: bool) -> Shape:
    _, heads, _ = x.shape
    return *storage(weight), heads, weight.shape[1], size, int(transposed), rows_range(x.shape[0])


@define(
    Tolerance(
        relative=2e-6,
        absolute=1e-6,
        reason="as of `linear`: float32 sums of at most a few thousand terms",
    ),
    _head_linear_cost,
    shape=_head_linear_shape,
)
def head_linear(x: Floats, weight: Weight, first: int, size: int, transposed: bool) -> Floats:
    """Each head by itself times rows of its own: W_h x_h, or W_h^T x_h.

    W_h is rows h * r + first to h * r + first + size of the weight, where r = rows / heads. So the
    up-projections of latent attention, which are stored as one matrix for keys and values, are
    used as they lie, and in the transposed direction too.

    Args:
        x: float32 [n, heads, columns], or [n, heads, size] where transposed.
        weight: [heads * r, columns] in any storage format; decoded exactly.
        first, size: first + size <= r.

    Returns:
        float32 [n, heads, size], or [n, heads, columns] where transposed; sums in float64.
    """
    count, heads, _ = x.shape
    rows = weight.shape[0] // heads
    wide = x.astype(np.float64)
    out = np.empty((count, heads, weight.shape[1] if transposed else size), np.float32)
    for head in range(heads):
        start = head * rows + first
        part = weight.decode(start, start + size).astype(np.float64)
        out[:, head] = wide[:, head] @ (part if transposed else part.T)
    return out
