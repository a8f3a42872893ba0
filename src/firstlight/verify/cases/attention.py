"""Cases of `attention` and `stream_write`: paged state of several sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.ops.attention import round_entries
from firstlight.ops.paging import PagedRows
from firstlight.verify.cases.base import Arguments, Case, StreamArgument, normal


@dataclass(frozen=True)
class Layout:
    """Which rows a batch has, and how their state lies.

    Attributes:
        name: of the case.
        sequences: (positions already held, rows now) of each sequence.
        page_tokens: positions per page.
        window: as in `attention`; pages that left it are freed (-1).
    """

    name: str
    sequences: tuple[tuple[int, int], ...]
    page_tokens: int = 16
    window: int | None = None
    heads: int = 4
    key_value_heads: int = 2
    key_size: int = 16
    value_size: int = 16
    soft_cap: float | None = None
    size: float = 1.0
    quick: bool = False


_LAYOUTS = (
    Layout("one token", ((0, 1),)),
    Layout("no rows", ()),
    Layout("a sequence without rows", ((0, 3), (9, 0), (4, 2))),
    Layout("prefill", ((0, 37),), quick=True),
    Layout("a chunk of a prefill", ((41, 29),), page_tokens=8),
    Layout("decode batch", ((0, 1), (15, 1), (16, 1), (200, 1), (63, 1)), quick=True),
    Layout("decode and prefill mixed", ((100, 1), (0, 19), (31, 5), (7, 1)), page_tokens=4),
    Layout("pages of one token", ((5, 3), (0, 2)), page_tokens=1),
    Layout("page of 7 tokens", ((66, 9), (2, 1)), page_tokens=7),
    Layout("one head", ((70, 2),), heads=1, key_value_heads=1, key_size=1, value_size=1),
    Layout("many heads a group", ((90, 3),), heads=14, key_value_heads=2, key_size=33),
    Layout("values narrower", ((70, 3),), key_size=40, value_size=24, quick=True),
    Layout("values wider", ((70, 3),), key_size=9, value_size=67),
    Layout("wide heads", ((64, 2),), heads=4, key_value_heads=1, key_size=256, value_size=256),
    Layout("window", ((100, 5), (3, 2), (0, 40)), window=16, page_tokens=8, quick=True),
    Layout("window of one", ((100, 1), (0, 5)), window=1, page_tokens=4),
    Layout("window past a block", ((300, 70),), window=130),
    Layout("window wider than context", ((20, 3),), window=4096),
    Layout("soft cap", ((80, 4), (0, 9)), soft_cap=5.0, size=3.0, quick=True),
    Layout("window and soft cap", ((80, 9),), window=33, soft_cap=50.0),
    Layout("long context", ((2600, 2), (1023, 1), (1024, 1)), page_tokens=32),
    Layout("long context, one head", ((2999, 1),), heads=1, key_value_heads=1),
    Layout("long context in a window", ((5000, 3),), window=1500, page_tokens=64),
    Layout("a million positions in a window", ((1_000_000, 2),), window=1200, page_tokens=256),
    Layout("a million positions, small pages", ((999_990, 17), (3, 1)), 16, 700),
    Layout("scores far apart", ((130, 4),), size=4.0),
    # Rows beside the sizes of tiles, and prompts whose rows end within a block.
    Layout("two rows", ((62, 2),)),
    Layout("three rows", ((63, 3),), heads=7, key_value_heads=1),
    Layout("fifteen rows", ((120, 15),), heads=1, key_value_heads=1),
    Layout("seventeen rows", ((127, 17),), heads=6, key_value_heads=2, quick=True),
    Layout("fifteen sequences", tuple((11 * i, 1) for i in range(15))),
    Layout("seventeen sequences", tuple((9 * i, 1) for i in range(17)), heads=9, key_value_heads=3),
    Layout("many rows", ((0, 150),), heads=3, key_value_heads=3, page_tokens=64),
    Layout("more heads than a tile", ((70, 2),), heads=71, key_value_heads=1),
    # Published sizes of heads.
    Layout("size 64", ((200, 3),), heads=14, key_value_heads=2, key_size=64, value_size=64),
    Layout("size 80", ((200, 3),), key_size=80, value_size=80),
    Layout("size 96", ((200, 3),), key_size=96, value_size=96),
    Layout("size 128", ((200, 3),), heads=12, key_size=128, value_size=128, quick=True),
    Layout("size 256", ((600, 3),), heads=4, key_value_heads=1, key_size=256, value_size=256),
    Layout("size 256 in a window", ((600, 19),), 64, 512, 4, 1, 256, 256),
    Layout("size 128, soft cap", ((140, 9),), 64, None, 8, 4, 128, 128, soft_cap=50.0),
    Layout("odd sizes", ((130, 7),), key_size=65, value_size=31),
    Layout("long odd sizes", ((1100, 2),), key_size=129, value_size=161),
    Layout("decode at 4,000", ((4000, 1), (63, 1)), 64, None, 12, 2, 32, 32),
)


def layout_named(name: str) -> Layout:
    """The layout of that name."""
    (found,) = (layout for layout in _LAYOUTS if layout.name == name)
    return found


def attention_cases() -> Iterator[Case]:
    for layout in _LAYOUTS:
        for stream in ("float32", "bfloat16"):
            yield _attention(layout, stream)


def _attention(layout: Layout, stream: str) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout, generator)
        count = len(rows.positions)
        shape = (pages, layout.page_tokens, layout.key_value_heads)
        queries = normal(generator, count, layout.heads, layout.key_size)
        keys = stream_pages(generator, (*shape, layout.key_size), stream)
        values = stream_pages(generator, (*shape, layout.value_size), stream)
        scale = layout.key_size**-0.5
        queries *= np.float32(layout.size)
        return queries, keys, values, rows, scale, layout.window, layout.soft_cap

    return Case("attention", f"{layout.name}, {stream}", make, quick=layout.quick)


def paged_rows(layout: Layout, generator: np.random.Generator) -> tuple[PagedRows, int]:
    """The rows, and how many pages there are. Pages lie scattered; some belong to nobody."""
    counts = [count for _, count in layout.sequences]
    needed = [-(-(held + count) // layout.page_tokens) for held, count in layout.sequences]
    width = max(needed, default=0) + 1
    first = [
        0 if layout.window is None else max(0, held - layout.window + 1) // layout.page_tokens
        for held, _ in layout.sequences
    ]
    pages = sum(needed) - sum(first) + 3
    free = iter(generator.permutation(pages))
    table = np.full((len(counts), width), -1, np.int32)
    for sequence in range(len(counts)):
        for page in range(first[sequence], needed[sequence]):
            table[sequence, page] = next(free)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    positions = [np.arange(held, held + count) for held, count in layout.sequences]
    flat = np.concatenate([*positions, np.empty(0)]).astype(np.int32)
    return PagedRows(starts, flat, table, layout.page_tokens), pages


def stream_pages(
    generator: np.random.Generator, shape: tuple[int, ...], stream: str
) -> StreamArgument:
    """Pages of that shape and dtype, full of random entries."""
    values = normal(generator, *shape)
    dtype = np.dtype(np.uint16 if stream == "bfloat16" else np.float32)
    return StreamArgument(round_entries(values, dtype))


def stream_write_cases() -> Iterator[Case]:
    entries = {"heads": (2, 24), "odd": (1, 7), "latent": (67,)}
    for stream in ("float32", "bfloat16"):
        for name, entry in entries.items():
            for layout in _LAYOUTS:
                if layout.name in _WRITTEN:
                    yield _stream_write(layout, stream, name, entry)
        yield _stream_write_not_finite(stream)


_WRITTEN = {"one token", "no rows", "prefill", "decode and prefill mixed", "page of 7 tokens"}


def _stream_write(layout: Layout, stream: str, name: str, entry: tuple[int, ...]) -> Case:
    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(layout, generator)
        target = stream_pages(generator, (pages, layout.page_tokens, *entry), stream)
        return target, normal(generator, len(rows.positions), *entry), rows

    return Case("stream_write", f"{layout.name}, {name}, {stream}", make, quick=layout.quick)


def _stream_write_not_finite(stream: str) -> Case:
    """Also values that round up to the next power of two, to infinity, and ties."""

    def make(generator: np.random.Generator) -> Arguments:
        rows, pages = paged_rows(_LAYOUTS[0], generator)
        bits = np.array(
            (
                (0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001, 0x7F7FFFFF, 0x3F808000),
                (0x3F818000, 0x3FFFFFFF, 0x00000001, 0x80000000, 0x00008000, 0x7F800001),
            ),
            np.uint32,
        )
        values: NDArray[np.float32] = bits.view(np.float32).reshape(1, -1)
        return stream_pages(generator, (pages, 16, bits.size), stream), values, rows

    return Case("stream_write", f"not finite, {stream}", make)
