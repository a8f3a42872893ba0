"""Several residual streams instead of one: what a block is given of them, and how it joins them.

Manifold-constrained hyper-connections (Xie et al. 2025, arXiv:2512.24880; DeepSeek-V4's report,
section 2.2). With m streams x_1 to x_m of a token, a block F becomes

    y = F(sum_j pre_j x_j)        x'_k = post_k y + sum_j mix_jk x_j

whose weights follow from the streams themselves. `mix` is brought near to a matrix whose rows and
columns sum to one (Sinkhorn and Knopp 1967), so that no stream grows from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.shape import Shape, rows_range


@dataclass(frozen=True)
class ConnectionNumbers:
    """The numbers of `connection_weights`.

    Attributes:
        streams: m.
        iterations: how often the columns of `mix` are normalised; rows once less.
        epsilon: added to `pre`, to `mix` before it is normalised, and to every sum that divides.
    """

    streams: int
    iterations: int
    epsilon: float

    @property
    def count(self) -> int:
        """Weights of a token: m of `pre`, m of `post`, m * m of `mix`."""
        return self.streams * (2 + self.streams)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # The tanh form does not overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _connection_weights_cost(
    logits: Floats, base: Floats, scale: Floats, numbers: ConnectionNumbers
) -> Cost:
    rows, columns = logits.shape
    normalised = 4 * numbers.iterations * numbers.streams**2 * (columns > numbers.streams)
    return Cost(8 * rows * columns, rows * (10 * columns + normalised))


def _connection_weights_shape(
    logits: Floats, base: Floats, scale: Floats, numbers: ConnectionNumbers
) -> Shape:
    return numbers.streams, numbers.iterations, logits.shape[1], rows_range(logits.shape[0])


@define(
    Tolerance(
        4e-6, 1e-7, "a sigmoid or a softmax in float32, and sums of a few values at each iteration"
    ),
    _connection_weights_cost,
    shape=_connection_weights_shape,
)
def connection_weights(
    logits: Floats, base: Floats, scale: Floats, numbers: ConnectionNumbers
) -> Floats:
    """The weights of a block's connection to the streams, from products of these.

    With a, b, c the logits of each part times that part's scale, plus its base:

        pre = sigmoid(a) + epsilon      post = 2 sigmoid(b)
        mix = softmax of each row of c, + epsilon; then columns divided by their sums + epsilon, and
              iterations - 1 times rows, and columns again

    Args:
        logits: float32 [n, m * (2 + m)]; m of pre, m of post, then row after row of mix. Or [n, m]
            of pre alone, which is all that the model's end has.
        base: float32, of as many values as logits has columns.
        scale: float32 [3]; or [1] for pre alone.
        numbers: m and what the normalisation needs.

    Returns:
        float32, shape of logits, computed in float64.
    """
    m, epsilon = numbers.streams, numbers.epsilon
    factors = np.repeat(scale.astype(np.float64), (m, m, m * m)[: len(scale)])
    moved = logits.astype(np.float64) * factors + base
    pre = _sigmoid(moved[:, :m]) + epsilon
    if moved.shape[1] == m:
        return pre.astype(np.float32)
    post = 2.0 * _sigmoid(moved[:, m : 2 * m])
    mix = moved[:, 2 * m :].reshape(-1, m, m)
    mix = np.exp(mix - mix.max(axis=2, keepdims=True))
    mix = mix / mix.sum(axis=2, keepdims=True) + epsilon
    mix = mix / (mix.sum(axis=1, keepdims=True) + epsilon)
    for _ in range(numbers.iterations - 1):
        mix = mix / (mix.sum(axis=2, keepdims=True) + epsilon)
        mix = mix / (mix.sum(axis=1, keepdims=True) + epsilon)
    return np.concatenate((pre, post, mix.reshape(-1, m * m)), axis=1).astype(np.float32)


def _collapse_streams_cost(x: Floats, weights: Floats) -> Cost:
    rows, streams, size = x.shape
    return Cost(4 * rows * (streams + 1) * size, 2 * rows * streams * size)


def _streams_shape(x: Floats, *_: Floats) -> Shape:
    return x.shape[1], x.shape[2], rows_range(x.shape[0])


_SUM = Tolerance(1e-6, 1e-7, "a float32 sum of a few products")


@define(_SUM, _collapse_streams_cost, shape=_streams_shape)
def collapse_streams(x: Floats, weights: Floats) -> Floats:
    """sum_j pre_j x_j.

    Args:
        x: float32 [n, m, size].
        weights: float32 [n, m or more], of which the first m are pre.

    Returns:
        float32 [n, size]; summed in float64, stream by stream.
    """
    out = np.zeros((x.shape[0], x.shape[2]), np.float64)
    for index in range(x.shape[1]):
        out += weights[:, index, None].astype(np.float64) * x[:, index]
    return out.astype(np.float32)


def _expand_streams_cost(x: Floats, y: Floats, weights: Floats) -> Cost:
    rows, streams, size = x.shape
    return Cost(4 * rows * (2 * streams + 1) * size, 2 * rows * streams * (streams + 1) * size)


@define(_SUM, _expand_streams_cost, shape=_streams_shape)
def expand_streams(x: Floats, y: Floats, weights: Floats) -> Floats:
    """The streams after a block: x'_k = post_k y + sum_j mix_jk x_j.

    Args:
        x: float32 [n, m, size], the streams before it.
        y: float32 [n, size], what it gave.
        weights: float32 [n, m * (2 + m)], as `connection_weights` gives them.

    Returns:
        float32 [n, m, size]; summed in float64, the block first and then stream by stream.
    """
    rows, m, _ = x.shape
    wide = weights.astype(np.float64)
    post, mix = wide[:, m : 2 * m], wide[:, 2 * m :].reshape(rows, m, m)
    out = np.empty(x.shape, np.float32)
    for k in range(m):
        sums = post[:, k, None] * y
        for j in range(m):
            sums += mix[:, j, k, None] * x[:, j]
        out[:, k] = sums
    return out
