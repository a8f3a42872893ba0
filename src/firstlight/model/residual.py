"""The residual stream, or several that are mixed at every block (hyper-connections); and how what
several ranks have computed of a block joins it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.model.compressed_spec import HyperConnectionSpec
from firstlight.model.parts import norm, product
from firstlight.model.spec import ResidualSpec
from firstlight.model.weights import Weights
from firstlight.ops import Collective, ConnectionNumbers, Norm, Ops, Product, Tensor
from firstlight.ops.parts import join_residual


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


@dataclass(frozen=True, eq=False)
class PartialSum:
    """How a sum of ranks' parts becomes a block's result: `join_residual`, with these."""

    post_norm: Norm | None
    scale: float | None


def partial_sum(residual: ResidualSpec, weights: Weights) -> PartialSum | None:
    """What is left to do behind a block; None where its result is whole."""
    if not residual.partial:
        return None
    return PartialSum(norm(residual.post_norm, weights), residual.joining_scale)


def summed(
    ops: Ops, ranks: Collective | None, x: Tensor, part: Tensor, how: PartialSum | None
) -> Tensor:
    """A block's result as the block would have given it by itself.

    Args:
        x: float32 [n, hidden_size], what the block was given.
        part: float32 [n, hidden_size], this rank's part of the block's result; or all of it, where
            `how` is None.
    """
    if how is None:
        return part
    assert ranks is not None
    return join_residual(ops, x, ranks.sum(part), how.post_norm, how.scale)


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
