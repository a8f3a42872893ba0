"""Attention over a window and entries behind it, each row by itself: the kernel.

A program computes some heads of one row, all of which share every key. It goes through the blocks
that the row sees: first those of its window, then those of entries, all or a list of them. Where a
sequence has few rows, several programs take a part of the blocks each, and `combine` joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from firstlight.backends.torch.triton.entry_blocks import (
    add_block,
    asked,
    begin_softmax,
    consecutive,
    no_values,
    put,
    scattered,
)


@triton.jit(do_not_specialize=["near_width", "width", "most_chosen"])
def attend_listed(
    queries: tl.tensor,
    near: tl.tensor,
    entries: tl.tensor,
    chosen: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    states: tl.tensor,
    numbers: tl.tensor,
    places: tl.tensor,
    near_table: tl.tensor,
    near_width: tl.tensor,
    table: tl.tensor,
    width: tl.tensor,
    most_chosen: tl.tensor,
    heads: tl.tensor,
    window: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    KEY_SIZE: tl.constexpr,
    KEY_LOW: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_REST: tl.constexpr,
    NEAR_ENTRIES: tl.constexpr,
    PAGE_ENTRIES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
    CHOSEN: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PART_BLOCKS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
) -> None:
    """Some heads of a row, and one part of what it sees: the two numbers of the program.

    Args:
        queries: float32 [rows, heads, KEY_SIZE].
        near: pages [pages, NEAR_ENTRIES, KEY_SIZE] of every position, of which a row sees `window`;
            NEAR_ENTRIES is 0 where nothing near by is seen.
        entries: pages [pages, PAGE_ENTRIES, KEY_SIZE] of runs of `stride` positions, which are seen
            once they are complete. Of both the first VALUE_SIZE columns are the values.
        chosen: int32 [rows, most_chosen], read if CHOSEN: the entries that a row sees, -1 for none;
            those that are come before as many as it could see.
        sinks: float32 [heads], read if SINKS.
        out: float32 [rows, heads, VALUE_SIZE], written if not SPLIT.
        sums, states: as `combine` takes them, written if SPLIT.
        numbers: int32 [rows of this launch].
        places: int32 [rows, 2]: each row's sequence and position.
        near_table, table: int32 [sequences, near_width or width], pages.
        scale: of products, so that they are exponents of two.
        PART_BLOCKS, MOST_PARTS: a part has so many blocks, or, where there would be more parts than
            that, as many as need be.
        KEY_LOW, KEY_REST, VALUE_LOW, VALUE_REST, PRODUCT: see `add_block`.
    """
    tiles = tl.cdiv(heads, TILE)
    index = tl.program_id(0) // tiles
    row = tl.load(numbers + index).to(tl.int64)
    sequence = tl.load(places + row * 2).to(tl.int64)
    position = tl.load(places + row * 2 + 1)
    head = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    there = head < heads

    near_first = 0
    near_blocks = 0
    oldest = 0
    if NEAR_ENTRIES > 0:
        oldest = tl.maximum(position - window + 1, 0)
        near_first = oldest // BLOCK
        near_blocks = position // BLOCK + 1 - near_first
    count = (position + 1) // stride
    if CHOSEN:
        count = tl.minimum(count, most_chosen)
    blocks = near_blocks + tl.cdiv(count, BLOCK)
    begin = 0
    end = blocks
    part = 0
    parts = 1
    if SPLIT:
        part = tl.program_id(1)
        parts = tl.num_programs(1)
        size = tl.maximum(tl.cdiv(blocks, MOST_PARTS), PART_BLOCKS)
        begin = part * size
        end = tl.minimum(begin + size, blocks)
    place = (index.to(tl.int64) * heads + head) * parts + part

    most, total = begin_softmax(sinks, head, there, part, TILE, PRODUCT, SINKS)
    if SPLIT:  # noqa: SIM102 - only one of the two is known when this is compiled
        if begin >= end:
            # `combine` does not read the sums of a part whose total is nothing.
            tl.store(states + place * 2, most, mask=there)
            tl.store(states + place * 2 + 1, total, mask=there)
            return

    query_low, query_rest = asked(queries, row * heads + head, there, KEY_SIZE, KEY_LOW, KEY_REST)
    low, rest = no_values(TILE, VALUE_LOW, VALUE_REST)
    if NEAR_ENTRIES > 0:
        own_table = near_table + sequence * near_width
        for block in range(begin, tl.minimum(end, near_blocks)):
            start = (near_first + block) * BLOCK
            number = start + tl.arange(0, BLOCK)
            held = (number >= oldest) & (number <= position)
            entry = consecutive(own_table, start, held, NEAR_ENTRIES, BLOCK)
            most, total, low, rest = add_block(
                entry, held, held[None, :], most, total, low, rest, query_low, query_rest,
                near, near, 1.0, scale, KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW,
                VALUE_REST, BLOCK, PRODUCT, True, False, True,
            )  # fmt: skip
    own_table = table + sequence * width
    for block in range(tl.maximum(begin, near_blocks), end):
        start = (block - near_blocks) * BLOCK
        number = start + tl.arange(0, BLOCK)
        held = number < count
        if CHOSEN:
            number = tl.load(chosen + row * most_chosen + number, mask=held, other=-1)
            held = number >= 0
            entry = scattered(own_table, number, held, PAGE_ENTRIES)
        else:
            entry = consecutive(own_table, start, held, PAGE_ENTRIES, BLOCK)
        most, total, low, rest = add_block(
            entry, held, held[None, :], most, total, low, rest, query_low, query_rest,
            entries, entries, 1.0, scale, KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW,
            VALUE_REST, BLOCK, PRODUCT, True, False, True,
        )  # fmt: skip

    if SPLIT:
        tl.store(states + place * 2, most, mask=there)
        tl.store(states + place * 2 + 1, total, mask=there)
        put(sums, place, there, low, rest, VALUE_SIZE, VALUE_LOW, VALUE_REST)
    else:
        low = low / total[:, None]
        rest = rest / total[:, None]
        put(out, row * heads + head, there, low, rest, VALUE_SIZE, VALUE_LOW, VALUE_REST)
