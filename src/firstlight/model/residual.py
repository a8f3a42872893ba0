"""The residual stream, or several that are mixed at every block (hyper-connections)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.model.compressed_spec import HyperConnectionSpec
from firstlight.model.parts import product
from firstlight.model.weights import Weights
from firstlight.ops import ConnectionNumbers, Ops, Product, Tensor


@dataclass(frozen=True, eq=False)
class Connection:
    """A block's connection to several streams, with its tensors on the backend."""

    mixing: Product
    base: Tensor
    scale: Tensor
    numbers: ConnectionNumbers
    norm_epsilon: float


def connection(spec: HyperConnectionSpec | None, weights: Weights) -> Connection | None:
    """The connection, as the functions here take it; None where there is one stream."""
    if spec is None:
        return None
    return Connection(
        product(spec.mixing, weights),
        weights[spec.base],
        weights[spec.scale],
        ConnectionNumbers(spec.streams, spec.iterations, spec.epsilon),
        spec.norm_epsilon,
    )


def through(
    ops: Ops, x: Tensor, connected: Connection | None, block: Callable[[Tensor], Tensor]
) -> Tensor:
    """The stream, or streams, after a block.

    Args:
        x: float32 [n, hidden_size], or [n, streams, hidden_size].
        connected: None: the block goes from the stream back to it by itself.
        block: where there are several streams, gives what is to be added to them.
    """
    if connected is None:
        return block(x)
    weights = _weights(ops, x, connected)
    return ops.expand_streams(x, block(ops.collapse_streams(x, weights)), weights)


def repeated(ops: Ops, x: Tensor, streams: int) -> Tensor:
    """So many streams, equal at the start: [n, hidden_size] -> [n, streams, hidden_size]."""
    count, size = x.shape
    row = x
    for _ in range(streams - 1):
        row = ops.join_columns(row, x)
    return row.reshape((count, streams, size))


def side_by_side(x: Tensor) -> Tensor:
    """Streams of a token as one row: [n, streams, hidden_size] -> [n, streams * hidden_size]."""
    count, streams, size = x.shape
    return x.reshape((count, streams * size))


def merged_rows(
    ops: Ops, x: Tensor, wanted: NDArray[np.int32], connected: Connection
) -> tuple[Tensor, NDArray[np.int32]]:
    """Of some tokens one stream of several, at the model's end.

    Args:
        x: float32 [n, streams, hidden_size].
        wanted: rows of it.

    Returns:
        float32 [len(wanted), hidden_size], and the numbers of its rows.
    """
    _, streams, size = x.shape
    rows = ops.take_rows(side_by_side(x), wanted).reshape((len(wanted), streams, size))
    numbers = np.arange(len(wanted), dtype=np.int32)
    return ops.collapse_streams(rows, _weights(ops, rows, connected)), numbers


def _weights(ops: Ops, x: Tensor, connected: Connection) -> Tensor:
    normed = ops.rms_norm(side_by_side(x), None, connected.norm_epsilon)
    logits = ops.linear(normed, connected.mixing.weight)
    return ops.connection_weights(logits, connected.base, connected.scale, connected.numbers)
