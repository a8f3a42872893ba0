"""Tensors into a shard, a few rows at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import lcm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.conversion.outputs import AnyOutput, Output
from firstlight.conversion.schemes import Scheme
from firstlight.conversion.shard_file import ShardFile
from firstlight.conversion.square import Square
from firstlight.conversion.stacked import StackedOutput, write_stacked
from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Weight
from firstlight.formats.plain import F32
from firstlight.host.processor import usable_cores
from firstlight.model.stored import release_rows, stored_rows, stored_vector

_PIECE_VALUES = 1 << 18
"""What one thread encodes at a time; it needs some ten times as many bytes as it works."""

_PIECE_BYTES = 1 << 22
_MOST_THREADS = 16

Encoded = tuple[int, tuple[Bytes, ...], Square]
"""First row, bytes of each part, and what became of the values."""


def write_output(
    output: AnyOutput, checkpoint: Checkpoint, shard: ShardFile, advance: Callable[[int], None]
) -> Square | None:
    """Write one tensor of the model.

    Args:
        advance: told of the bytes read.

    Returns:
        What became of its values; None where they were copied, or are no matrix.

    Raises:
        FormatError: values cannot be expressed.
    """
    if isinstance(output, StackedOutput):
        square = write_stacked(output, checkpoint, shard, advance)
        return square if len(output.shape) == 3 else None
    if output.source is None or output.scheme is None:
        _copy(output.name, checkpoint, shard, advance)
        return None
    if len(output.shape) == 1:
        _write_vector(output, checkpoint, shard)
        return None
    scheme, (rows, columns) = output.scheme, output.shape
    names = [entry.name for entry in output.entries(checkpoint)]
    parts = list(zip(scheme.parts(rows, columns), names, strict=True))
    for part, name in parts:
        if part.constant is not None:
            shard.write(name, 0, part.constant)
    positions = {name: 0 for part, name in parts if part.constant is None}
    total = Square(0.0, 0.0)
    read = checkpoint.tensors[output.source.name].nbytes
    if output.source.stack is not None:
        read //= output.source.stack.count
    told = 0
    for stop, data, square in _in_parallel(output, checkpoint, scheme):
        for name, piece in zip(positions, data, strict=True):
            shard.write(name, positions[name], piece)
            positions[name] += piece.nbytes
        total += square
        done = read * stop // rows
        advance(done - told)
        told = done
        release_rows(output.source, checkpoint, 0, stop)
    return total


def _in_parallel(output: Output, checkpoint: Checkpoint, scheme: Scheme) -> Iterator[Encoded]:
    """Pieces in their order, at most two a thread encoded ahead."""
    rows, columns = output.shape
    multiple = lcm(scheme.row_multiple, output.head or 1)
    step = max(1, _PIECE_VALUES // columns // multiple) * multiple
    encode = partial(_encode, output, checkpoint, scheme)
    ranges = iter([(start, min(start + step, rows)) for start in range(0, rows, step)])
    threads = min(usable_cores(), _MOST_THREADS)
    waiting: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start, stop in ranges:
                waiting.append(pool.submit(encode, start, stop))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _encode(
    output: Output, checkpoint: Checkpoint, scheme: Scheme, start: int, stop: int
) -> Encoded:
    assert output.source is not None
    weight = stored_rows(output.source, checkpoint, start, stop)
    if output.head is not None:
        weight = replace(weight, data=_halves(weight.data, output.head))
    if output.offset:
        values = weight.decode() + np.float32(output.offset)
        weight = Weight(F32, weight.shape, values.view(np.uint8), weight.name)
    try:
        data, decoded = scheme.encode(weight)
    except FormatError as error:
        raise FormatError(output.name, error.reason, error.remedy) from error
    values = weight.decode()
    difference = (decoded - values).reshape(-1)
    flat = values.reshape(-1)
    square = Square(float(np.dot(flat, flat)), float(np.dot(difference, difference)))
    return stop, tuple(np.ascontiguousarray(part) for part in data), square


def _halves(rows: NDArray[Any], head: int) -> NDArray[Any]:
    """Rows of heads whose neighbours turn together, as rows that turn with those half a head on."""
    pairs = rows.reshape(-1, head // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _write_vector(output: Output, checkpoint: Checkpoint, shard: ShardFile) -> None:
    assert output.source is not None and output.scheme is not None
    values = stored_vector(output.source, checkpoint).astype(np.float32)
    if output.head is not None:
        values = _halves(values, output.head)
    if output.offset:
        values = values + np.float32(output.offset)
    data = np.ascontiguousarray(values).reshape(1, -1).view(np.uint8)
    weight = Weight(F32, (1, len(values)), data, output.name)
    ((stored,), _) = output.scheme.encode(weight)
    shard.write(output.name, 0, np.ascontiguousarray(stored))


def _copy(
    name: str, checkpoint: Checkpoint, shard: ShardFile, advance: Callable[[int], None]
) -> None:
    data = checkpoint.raw(name)
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        shard.write(name, start, piece)
        advance(len(piece))
    rows = prod(checkpoint.tensors[name].shape[:-1])
    checkpoint.release(name, 0, rows)
