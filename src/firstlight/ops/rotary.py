"""Rotary position embedding, applied."""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.shape import Shape, rows_range


def _rotary_cost(x: Floats, cosine_sine: Floats, interleaved: bool) -> Cost:
    return Cost(8 * x.size + 4 * cosine_sine.size, 3 * x.size)


def _rotary_shape(x: Floats, cosine_sine: Floats, interleaved: bool) -> Shape:
    return x.shape[1], x.shape[2], rows_range(x.shape[0])


@define(
    Tolerance(2.4e-7, 0.0, "two products and a sum, which a kernel may fuse"),
    _rotary_cost,
    shape=_rotary_shape,
)
def rotary(x: Floats, cosine_sine: Floats, interleaved: bool) -> Floats:
    """Turn pairs of values by the angles of their row's position.

    Su et al. 2021 (arXiv:2104.09864), equation 34. The angles are made by `model.rope`, once a
    step, so that this op knows nothing of scaling variants.

    Args:
        x: float32 [n, heads, size].
        cosine_sine: float32 [n, 2, r]; cosines, then sines, of r angles. The first 2 * r values
            of each head turn (2 * r <= size); the rest are copied.
        interleaved: value 2i pairs with 2i + 1 (the paper, GGUF's llama layout); else i pairs
            with i + r (Hugging Face's layout).

    Returns:
        float32 [n, heads, size].
    """
    half = cosine_sine.shape[2]
    cosine, sine = cosine_sine[:, None, 0], cosine_sine[:, None, 1]
    out = x.copy()
    if interleaved:
        first, second = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        out[..., 0 : 2 * half : 2] = first * cosine - second * sine
        out[..., 1 : 2 * half : 2] = second * cosine + first * sine
    else:
        first, second = x[..., :half], x[..., half : 2 * half]
        out[..., :half] = first * cosine - second * sine
        out[..., half : 2 * half] = second * cosine + first * sine
    return np.ascontiguousarray(out)
