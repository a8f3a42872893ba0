"""Products with weights: linear, and the row look-up of an embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats, Weight
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.shape import Shape, rows_range, storage

# Weights are decoded this many values at a time, so that the definition of a product with a
# 4-bit matrix never holds the whole matrix in float32.
_DECODED_VALUES = 1 << 22


def _linear_cost(x: Floats, weight: Weight, bias: Floats | None = None) -> Cost:
    rows, columns = weight.shape
    moved = weight.nbytes + 4 * (x.size + len(x) * rows) + (0 if bias is None else 4 * rows)
    return Cost(moved, 2 * len(x) * rows * columns)


def _linear_shape(x: Floats, weight: Weight, bias: Floats | None = None) -> Shape:
    return *storage(weight), *weight.shape, rows_range(x.shape[0])


@define(
    Tolerance(
        relative=2e-6,
        absolute=1e-6,
        reason="a float32 sum of n terms in any order errs by about sqrt(n) * 2^-24 of the terms' "
        "root sum of squares, which at the largest widths in use (n = 2^15) stays below 2e-6 of "
        "the result's largest value",
    ),
    _linear_cost,
    shape=_linear_shape,
)
def linear(x: Floats, weight: Weight, bias: Floats | None = None) -> Floats:
    """x @ weight.T + bias.

    Args:
        x: float32 [n, columns].
        weight: [rows, columns] in any storage format; decoded exactly.
        bias: float32 [rows] or None.

    Returns:
        float32 [n, rows], accumulated in float64, so that the result does not depend on which
        other rows x has (up to the rounding of a float64 sum).
    """
    wide = x.astype(np.float64)
    out = np.empty((len(x), weight.rows), np.float32)
    step = max(1, _DECODED_VALUES // max(1, weight.columns))
    for start in range(0, weight.rows, step):
        stop = min(start + step, weight.rows)
        product = wide @ weight.decode(start, stop).astype(np.float64).T
        if bias is not None:
            product += bias[start:stop]
        out[:, start:stop] = product
    return out


def _embed_cost(table: Weight, token_ids: NDArray[np.int32]) -> Cost:
    row_bytes = table.format.row_bytes(table.columns)
    return Cost(len(token_ids) * (row_bytes + 4 * table.columns + 4), 0)


def _embed_shape(table: Weight, token_ids: NDArray[np.int32]) -> Shape:
    return *storage(table), table.shape[1], rows_range(len(token_ids))


@define(
    Tolerance(0.0, 0.0, "decoding is exact: nothing is summed"), _embed_cost, shape=_embed_shape
)
def embed(table: Weight, token_ids: NDArray[np.int32]) -> Floats:
    """Rows of the embedding table.

    Args:
        table: [vocabulary, columns] in any storage format.
        token_ids: int32 [n], each in [0, vocabulary).

    Returns:
        float32 [n, columns].
    """
    return table.decode_rows(token_ids)
