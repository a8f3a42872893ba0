"""Cases of several residual streams: their weights, and how blocks are connected to them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstlight.ops.hyper_connections import ConnectionNumbers
from firstlight.verify.cases.base import Arguments, Case, normal

_SIZES = ((0, 4, 8), (1, 4, 33), (5, 1, 16), (7, 3, 1027), (37, 4, 64), (2, 9, 5))


def connection_weights_cases() -> Iterator[Case]:
    for rows, streams, _ in _SIZES:
        for iterations in (1, 20):
            for end in (False, True):
                yield _connection_weights(rows, streams, iterations, end)


def _connection_weights(rows: int, streams: int, iterations: int, end: bool) -> Case:
    numbers = ConnectionNumbers(streams, iterations, 1e-6)
    count = streams if end else numbers.count

    def make(generator: np.random.Generator) -> Arguments:
        scale = normal(generator, 1 if end else 3)
        logits = normal(generator, rows, count) * np.float32(4)
        return logits, normal(generator, count), scale, numbers

    name = f"{rows} rows, {streams} streams, {iterations} iterations{', the end' if end else ''}"
    return Case("connection_weights", name, make, quick=rows == 37)


def collapse_streams_cases() -> Iterator[Case]:
    for rows, streams, size in _SIZES:

        def make(
            generator: np.random.Generator,
            rows: int = rows,
            streams: int = streams,
            size: int = size,
        ) -> Arguments:
            weights = normal(generator, rows, streams * (2 + streams))
            return normal(generator, rows, streams, size), weights

        name = f"{rows} rows, {streams} streams of {size}"
        yield Case("collapse_streams", name, make, quick=rows == 37)


def expand_streams_cases() -> Iterator[Case]:
    for rows, streams, size in _SIZES:

        def make(
            generator: np.random.Generator,
            rows: int = rows,
            streams: int = streams,
            size: int = size,
        ) -> Arguments:
            x, y = normal(generator, rows, streams, size), normal(generator, rows, size)
            return x, y, normal(generator, rows, streams * (2 + streams))

        name = f"{rows} rows, {streams} streams of {size}"
        yield Case("expand_streams", name, make, quick=rows == 37)
