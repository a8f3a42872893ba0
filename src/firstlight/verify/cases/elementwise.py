"""Cases of the ops on single values and rows, and of `rotary`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np

from firstlight.ops.elementwise import Activation
from firstlight.verify.cases.base import Arguments, Case, normal

_SHAPES = ((1, 1), (1, 7), (3, 33), (5, 256), (17, 1027), (0, 64))
_QUICK = (17, 1027)
# Long enough that a kernel which shares work among threads does so.
_LARGE = (67, 2050)


def rms_norm_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, _LARGE, (4, 3, 40)):
        for weighted in (True, False):
            yield _rms_norm(shape, weighted)
    yield Case("rms_norm", "zeros", lambda _: (np.zeros((2, 9), np.float32), None, 1e-6))
    yield Case("rms_norm", "huge and tiny values", _extreme_norm)
    yield Case("rms_norm", "not finite", lambda g: (_with_strange_values(g, 4, 33), None, 1e-5))


def _rms_norm(shape: tuple[int, ...], weighted: bool) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x = normal(generator, *shape)
        return x, normal(generator, shape[-1]) if weighted else None, 1e-6

    name = f"{_times(shape)}{' weighted' if weighted else ''}"
    return Case("rms_norm", name, make, quick=shape == _QUICK)


def _extreme_norm(generator: np.random.Generator) -> Arguments:
    """Squares that leave the range of float32 in both directions."""
    sizes = np.array([[1e30], [1.0], [1e-30]], np.float32)
    return normal(generator, 3, 50) * sizes, None, 0.0


def layer_norm_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, _LARGE, (4, 3, 40)):
        yield _layer_norm(shape, 0.0)
        yield _layer_norm(shape, 30.0)


def _layer_norm(shape: tuple[int, ...], mean: float) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x = normal(generator, *shape) + np.float32(mean)
        return x, normal(generator, shape[-1]), normal(generator, shape[-1]), 1e-6

    name = f"{_times(shape)} about {mean:g}"
    return Case("layer_norm", name, make, quick=shape == _QUICK)


def gate_cases() -> Iterator[Case]:
    for activation in get_args(Activation):
        for shape in (*_SHAPES, _LARGE):
            yield _gate(shape, activation, 2.0)
        yield _gate((3, 67), activation, 40.0)
        yield _gate((3, 67), activation, 1e-3)
        yield _gate_not_finite(activation)
        yield _gate_huge(activation)


def _gate(shape: tuple[int, int], activation: str, size: float) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        gate_values = normal(generator, *shape) * np.float32(size)
        return gate_values, normal(generator, *shape), activation

    name = f"{activation} {_times(shape)} of size {size:g}"
    return Case("gate", name, make, quick=shape == _QUICK)


def _gate_not_finite(activation: str) -> Case:
    """NaN only: what minus infinity times zero gives is left open by the definitions."""

    def make(generator: np.random.Generator) -> Arguments:
        values = _with_strange_values(generator, 4, 33)
        values[np.isinf(values)] = 0
        return values, normal(generator, 4, 33), activation

    return Case("gate", f"{activation} not finite", make)


def _gate_huge(activation: str) -> Case:
    """Values whose exponential or cube overflows."""

    def make(generator: np.random.Generator) -> Arguments:
        values = np.array([[1e30, -1e30, 200.0, -200.0, 90.0, -90.0, -1e4]], np.float32)
        return values, normal(generator, 1, 7), activation

    return Case("gate", f"{activation} huge", make)


def add_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, _LARGE):
        yield _add(shape, None)
        yield _add(shape, 0.22)
    yield Case("add", "not finite", lambda g: (_with_strange_values(g, 4, 33), normal(g, 4, 33)))


def _add(shape: tuple[int, int], scale: float | None) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        x, y = normal(generator, *shape), normal(generator, *shape)
        return (x, y) if scale is None else (x, y, scale)

    name = f"{_times(shape)}{'' if scale is None else ' scaled'}"
    return Case("add", name, make, quick=shape == _QUICK)


def scale_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, _LARGE, (3, 5, 7)):
        yield _scale(shape, 25.298221281347036)  # sqrt(640), rounded to float32 by the op
    yield Case("scale", "not finite", lambda g: (_with_strange_values(g, 4, 33), 0.1))


def _scale(shape: tuple[int, ...], factor: float) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        return normal(generator, *shape), factor

    return Case("scale", _times(shape), make, quick=shape == _QUICK)


def soft_cap_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, _LARGE):
        yield _soft_cap(shape, 30.0, 40.0)
    # The result is all but the argument: an error of the cap's size times 1e-7 would show.
    yield _soft_cap((5, 67), 50.0, 0.01)
    yield _soft_cap((5, 67), 50.0, 2.0)
    yield Case("soft_cap", "not finite", lambda g: (_with_strange_values(g, 4, 33), 30.0))


def _soft_cap(shape: tuple[int, int], cap: float, size: float) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        return normal(generator, *shape) * np.float32(size), cap

    name = f"{_times(shape)} of size {size:g}"
    return Case("soft_cap", name, make, quick=shape == _QUICK)


def take_rows_cases() -> Iterator[Case]:
    for shape in ((1, 1), (7, 33), (17, 1027), (5, 3, 8)):
        for count in (0, 1, 11):
            yield _take_rows(shape, count)


def _take_rows(shape: tuple[int, ...], count: int) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        indices = generator.integers(0, shape[0], count).astype(np.int32)
        return normal(generator, *shape), indices

    return Case("take_rows", f"{count} of {_times(shape)}", make, quick=count == 11)


def rotary_cases() -> Iterator[Case]:
    # (rows, heads, size, angles): all of a head, a part of it, none, odd sizes
    for shape in (
        (1, 1, 2, 1),
        (1, 4, 64, 32),
        (3, 2, 80, 20),
        (5, 1, 7, 3),
        (67, 9, 96, 48),
        (2, 3, 16, 0),
        (0, 2, 64, 32),
    ):
        for interleaved in (False, True):
            yield _rotary(shape, interleaved)


def _rotary(shape: tuple[int, int, int, int], interleaved: bool) -> Case:
    rows, heads, size, angles = shape

    def make(generator: np.random.Generator) -> Arguments:
        turns = generator.uniform(-4.0, 4.0, (rows, angles))
        cosine_sine = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
        return normal(generator, rows, heads, size), cosine_sine, interleaved

    name = f"{_times(shape)}{' interleaved' if interleaved else ''}"
    return Case("rotary", name, make, quick=rows == 67)


def _with_strange_values(
    generator: np.random.Generator, rows: int, columns: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The last rows hold NaN, both infinities, both zeros and a subnormal number."""
    x = normal(generator, rows, columns)
    x[-1, 3] = np.nan
    x[-2, 5] = np.inf
    x[-3, :4] = (-np.inf, 0.0, -0.0, 1e-40)
    return x


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
