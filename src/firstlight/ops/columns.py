"""Parts of rows: taking some of the last axis' values, and putting two tensors side by side."""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define

_COPY = Tolerance(0.0, 0.0, "a copy")


def _take_columns_cost(x: Floats, start: int, stop: int) -> Cost:
    return Cost(8 * (x.size // max(1, x.shape[-1])) * (stop - start), 0)


@define(_COPY, _take_columns_cost)
def take_columns(x: Floats, start: int, stop: int) -> Floats:
    """Values start:stop of the last axis, float32 [..., stop - start]."""
    return np.ascontiguousarray(x[..., start:stop])


def _join_columns_cost(x: Floats, y: Floats) -> Cost:
    return Cost(8 * (x.size + y.size), 0)


@define(_COPY, _join_columns_cost)
def join_columns(x: Floats, y: Floats) -> Floats:
    """x [..., a] and y [..., b] side by side, float32 [..., a + b]."""
    return np.concatenate((x, y), axis=-1)
