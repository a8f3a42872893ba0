"""Ops on each value or row by itself: norm, gate, sums, caps."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.shape import Shape, rows_range

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_EXACT = Tolerance(0.0, 0.0, "a copy, or one rounding in float32")
_ROUNDING = Tolerance(
    2e-6, 1e-7, "a few float32 roundings and one transcendental function of the host's library"
)


def _rms_norm_cost(x: Floats, weight: Floats | None, epsilon: float) -> Cost:
    return Cost(8 * x.size + (0 if weight is None else 4 * weight.size), 4 * x.size)


def _rms_norm_shape(x: Floats, weight: Floats | None, epsilon: float) -> Shape:
    return *x.shape[1:], rows_range(x.shape[0])


@define(_ROUNDING, _rms_norm_cost, shape=_rms_norm_shape)
def rms_norm(x: Floats, weight: Floats | None, epsilon: float) -> Floats:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis.

    Root mean square layer normalisation, Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4,
    with the epsilon that implementations add.

    Args:
        x: float32 [..., columns].
        weight: float32 [columns], or None for one.
        epsilon: added to the mean square.

    Returns:
        float32, shape of x; the mean is taken in float64.
    """
    mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    normed: Floats = (x * (1.0 / np.sqrt(mean_square + epsilon))).astype(np.float32)
    return normed if weight is None else normed * weight


def _layer_norm_cost(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> Cost:
    return Cost(8 * x.size + 8 * weight.size, 8 * x.size)


@define(_ROUNDING, _layer_norm_cost)
def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> Floats:
    """(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias over the last axis.

    Layer normalisation, Ba et al. 2016 (arXiv:1607.06450), equation 4.

    Args:
        x: float32 [..., columns].
        weight, bias: float32 [columns].
        epsilon: added to the variance, the mean square of what is left without the mean.

    Returns:
        float32, shape of x; mean and variance are taken in float64.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    normed: Floats = (centred / np.sqrt(variance + epsilon) * weight + bias).astype(np.float32)
    return normed


def _activate(x: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    if activation == "silu":
        # 1 / (1 + exp(-x)) overflows for very negative x; the tanh form is the same function.
        return x * (0.5 * (1.0 + np.tanh(0.5 * x)))
    if activation == "gelu":
        erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)), np.float64)
        return x * 0.5 * (1.0 + erf)
    if activation == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "relu":
        return np.maximum(x, 0.0)
    raise ValueError(f"unknown activation {activation!r}")


def _gate_cost(gate_values: Floats, up: Floats, activation: Activation) -> Cost:
    return Cost(12 * up.size, 8 * up.size)


def _gate_shape(gate_values: Floats, up: Floats, activation: Activation) -> Shape:
    return activation, up.shape[-1], rows_range(up.shape[0])


@define(_ROUNDING, _gate_cost, shape=_gate_shape)
def gate(gate_values: Floats, up: Floats, activation: Activation) -> Floats:
    """activation(gate_values) * up: the gated linear unit of Shazeer 2020 (arXiv:2002.05202).

    Args:
        gate_values: float32 [n, columns].
        up: float32 [n, columns].
        activation: "silu" (x * sigmoid(x)), "gelu" (exact, with erf), "gelu_tanh" (the tanh
            approximation of Hendrycks and Gimpel 2016, arXiv:1606.08415) or "relu".

    Returns:
        float32 [n, columns], computed in float64.
    """
    return (_activate(gate_values.astype(np.float64), activation) * up).astype(np.float32)


def _add_cost(x: Floats, y: Floats, scale: float = 1.0) -> Cost:
    return Cost(12 * x.size, 2 * x.size)


def _add_shape(x: Floats, y: Floats, scale: float = 1.0) -> Shape:
    return "sum" if scale == 1.0 else "scaled", *x.shape[1:], rows_range(x.shape[0])


@define(
    Tolerance(1.2e-7, 0.0, "one multiply and one add, which a kernel may fuse into one rounding"),
    _add_cost,
    shape=_add_shape,
)
def add(x: Floats, y: Floats, scale: float = 1.0) -> Floats:
    """x + scale * y, float32 and shape of x."""
    return x + np.float32(scale) * y if scale != 1.0 else x + y


def _scale_cost(x: Floats, factor: float) -> Cost:
    return Cost(8 * x.size, x.size)


def _values_shape(x: Floats, factor: float) -> Shape:
    return *x.shape[1:], rows_range(x.shape[0])


@define(_EXACT, _scale_cost, shape=_values_shape)
def scale(x: Floats, factor: float) -> Floats:
    """x * factor, float32 and shape of x; the factor is rounded to float32 first."""
    return x * np.float32(factor)


def _soft_cap_cost(x: Floats, cap: float) -> Cost:
    return Cost(8 * x.size, 4 * x.size)


@define(_ROUNDING, _soft_cap_cost, shape=_values_shape)
def soft_cap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap), float32 and shape of x (Gemma 2, arXiv:2408.00118, section 2)."""
    return (cap * np.tanh(x.astype(np.float64) / cap)).astype(np.float32)


def _take_rows_cost(x: Floats, indices: NDArray[np.int32]) -> Cost:
    return Cost(8 * len(indices) * (x.size // max(1, len(x))), 0)


def _take_rows_shape(x: Floats, indices: NDArray[np.int32]) -> Shape:
    return x.shape[-1], rows_range(len(indices))


@define(_EXACT, _take_rows_cost, shape=_take_rows_shape)
def take_rows(x: Floats, indices: NDArray[np.int32]) -> Floats:
    """x[indices]: rows of x [n, ...] by int32 [m] -> [m, ...]."""
    return x[indices]


def _add_rows_cost(x: Floats, y: Floats, indices: NDArray[np.int32], factors: Floats) -> Cost:
    return Cost(12 * y.size, 2 * y.size)


def _add_rows_shape(x: Floats, y: Floats, indices: NDArray[np.int32], factors: Floats) -> Shape:
    return y.shape[-1], rows_range(y.shape[0])


@define(
    Tolerance(1.2e-7, 0.0, "one multiply and one add, which a kernel may fuse into one rounding"),
    _add_rows_cost,
    writes=(0,),
    shape=_add_rows_shape,
)
def add_rows(x: Floats, y: Floats, indices: NDArray[np.int32], factors: Floats) -> None:
    """x[indices] += factors * y: rows added where they belong.

    Args:
        x: float32 [n, columns]; changed.
        y: float32 [m, columns].
        indices: int32 [m], each another row of x.
        factors: float32 [m], of the rows of y.
    """
    x[indices] += factors[:, None] * y
