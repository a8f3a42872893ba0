"""Cases of attention over compressed entries: making them, choosing them, attending to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.ops.paging import PagedRows
from firstlight.verify.cases.attention import Layout, paged_rows, stream_pages
from firstlight.verify.cases.base import Arguments, Case, StreamArgument, normal


@dataclass(frozen=True)
class _Shape:
    """What sets one case apart from another.

    Attributes:
        sequences, page_tokens: as in `Layout`; the stride divides page_tokens.
        overlapping: entries are made of the run before as well.
        top_k: of the runs that are chosen; 0: all are seen.
    """

    name: str
    sequences: tuple[tuple[int, int], ...] = ((100, 1), (0, 19), (31, 5), (7, 1))
    page_tokens: int = 8
    stride: int = 4
    overlapping: bool = True
    heads: int = 5
    size: int = 24
    window: int = 13
    top_k: int = 3
    quick: bool = False


_SHAPES = (
    _Shape("mixed", quick=True),
    _Shape("no rows", sequences=()),
    _Shape("before the first run", sequences=((0, 1), (0, 3))),
    _Shape("a run at a time", sequences=((3, 1), (7, 1), (127, 1)), quick=True),
    _Shape("all runs", ((60, 9), (0, 40)), 16, 16, False, window=7, top_k=0, quick=True),
    _Shape("runs of three", ((50, 11), (0, 4)), 12, 3, heads=1, size=7, window=1, top_k=1),
    _Shape("a run a page", ((250, 9), (383, 1)), 128, 128, False, 4, 32, 128, 0),
    _Shape("fewer runs than are chosen", ((20, 4), (0, 9)), 64, 4, top_k=64),
    _Shape(
        *("one to seventeen rows", ((60, 1), (29, 2), (14, 3), (40, 17))),
        heads=17,
        size=40,
        window=9,
        top_k=6,
    ),
    _Shape("published sizes", ((515, 2), (4095, 1)), 128, 4, True, 8, 512, 128, 512),
    _Shape("published sizes, all runs", ((515, 2), (4095, 1)), 128, 128, False, 8, 512, 128, 0),
)
_STREAMS = ("float32", "bfloat16")


def pool_runs_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        for stream in _STREAMS:
            yield _pool_runs(shape, stream)


def _pool_runs(shape: _Shape, stream: str) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, entries = _stream(shape, generator, stream, (2, shape.size), shape.stride)
        if not shape.overlapping:
            return entries, rows, shape.stride, None, None
        before_rows, before = _stream(shape, generator, stream, (2, shape.size), 2 * shape.stride)
        return entries, rows, shape.stride, before, before_rows

    return Case("pool_runs", f"{shape.name}, {stream}", make, quick=shape.quick)


def select_runs_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        if shape.top_k:
            for stream in _STREAMS:
                yield _select_runs(shape, stream)


def _select_runs(shape: _Shape, stream: str) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        size = min(shape.size, 128)
        rows, keys = _stream(shape, generator, stream, (size,), None, shape.stride)
        count = len(rows.positions)
        queries = normal(generator, count, shape.heads, size)
        weights = normal(generator, count, shape.heads)
        return queries, weights, keys, rows, shape.stride, shape.top_k

    return Case("select_entries", f"runs, {shape.name}, {stream}", make, quick=shape.quick)


def compressed_attention_cases() -> Iterator[Case]:
    for shape in _SHAPES:
        for stream in _STREAMS:
            yield _compressed_attention(shape, stream)


def _compressed_attention(shape: _Shape, stream: str) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, keys = _stream(shape, generator, stream, (1, shape.size), shape.window)
        entry_rows, entries = _stream(shape, generator, stream, (shape.size,), None, shape.stride)
        count = len(rows.positions)
        queries = normal(generator, count, shape.heads, shape.size)
        chosen = None
        if shape.top_k:
            chosen = np.full((count, shape.top_k), -1, np.int32)
            for row, position in enumerate(rows.positions):
                runs = generator.permutation((int(position) + 1) // shape.stride)[: shape.top_k]
                chosen[row, : len(runs)] = np.sort(runs)
        sinks = normal(generator, shape.heads) * np.float32(3)
        scale = shape.size**-0.5
        far = entries, entry_rows, shape.stride, chosen
        return queries, keys, rows, shape.window, *far, scale, sinks

    return Case("compressed_attention", f"{shape.name}, {stream}", make, quick=shape.quick)


def _stream(
    shape: _Shape,
    generator: np.random.Generator,
    stream: str,
    entry: tuple[int, ...],
    window: int | None,
    stride: int = 1,
) -> tuple[PagedRows, StreamArgument]:
    """The rows in a stream with pages of its own, and these."""
    layout = Layout(shape.name, shape.sequences, shape.page_tokens, window)
    rows, pages = paged_rows(layout, generator)
    return rows, stream_pages(generator, (pages, shape.page_tokens // stride, *entry), stream)
