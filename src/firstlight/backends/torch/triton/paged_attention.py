"""Attention over pages where they lie: the kernels themselves.

A program computes a tile of queries of one sequence that share a key head. It goes through the
positions that they see block by block, finds each entry through the page table, and goes on with
one softmax. Where a sequence has few rows, several programs take a part of the positions each, and
`combine` joins what they found (flash-decoding; Dao, Haziza, Massa and Sizov 2023).
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
)
from firstlight.backends.torch.triton.softmax import NOTHING


@triton.jit(do_not_specialize=["table_width"])
def attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    states: tl.tensor,
    tiles: tl.tensor,
    table: tl.tensor,
    table_width: tl.tensor,
    key_heads: tl.tensor,
    group: tl.tensor,
    window: tl.tensor,
    inner_scale: tl.tensor,
    outer_scale: tl.tensor,
    KEY_SIZE: tl.constexpr,
    KEY_LOW: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_REST: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    LEAST_PART: tl.constexpr,
    MOST_PARTS: tl.constexpr,
) -> None:
    """One tile, one key head and one part of the positions: the three numbers of the program.

    Args:
        queries: float32 [rows, heads, KEY_SIZE].
        keys, values: pages [pages, PAGE_TOKENS, key_heads, size].
        sinks: float32 [heads], read if SINKS.
        out: float32 [rows, heads, VALUE_SIZE], written if not SPLIT.
        sums, states: as `combine` takes them, written if SPLIT.
        tiles: int32 [tiles, 6]; see `Tiles`.
        table: int32 [sequences, table_width], pages.
        group: heads that share a key head.
        inner_scale, outer_scale, KEY_LOW, KEY_REST, SHARED, PRODUCT, CAPPED: see `add_block`.
    """
    numbers = tiles + tl.program_id(0) * 6
    key_head = tl.program_id(1)
    sequence = tl.load(numbers)
    first_row = tl.load(numbers + 1).to(tl.int64)
    rows = tl.load(numbers + 2)
    first_position = tl.load(numbers + 3)
    before = tl.load(numbers + 4).to(tl.int64)
    first_query = tl.load(numbers + 5)

    query = first_query + tl.arange(0, TILE)
    there = query < rows * group
    row = tl.minimum(query // group, rows - 1)
    head = key_head * group + query % group
    heads = key_heads * group
    position = first_position + row
    earliest = first_position + first_query // group
    last = first_position + tl.minimum((first_query + TILE - 1) // group, rows - 1)

    begin = 0
    oldest = 0
    if WINDOWED:
        oldest = tl.maximum(earliest - window + 1, 0)
        begin = oldest // BLOCK * BLOCK
    end = last + 1
    part = 0
    parts = 1
    if SPLIT:
        part = tl.program_id(2)
        parts = tl.num_programs(2)
        size = tl.maximum(tl.cdiv(end - begin, MOST_PARTS), LEAST_PART)
        size = tl.cdiv(size, BLOCK) * BLOCK
        begin += part * size
        end = tl.minimum(begin + size, end)
    place = ((before + row) * heads + head) * parts + part

    most, total = begin_softmax(sinks, head, there, part, TILE, PRODUCT, SINKS)
    if SPLIT:  # noqa: SIM102 - only one of the two is known when this is compiled
        if begin >= end:
            # `combine` does not read the sums of a part whose total is nothing.
            tl.store(states + place * 2, most, mask=there)
            tl.store(states + place * 2 + 1, total, mask=there)
            return

    query_low, query_rest = asked(
        queries, (first_row + row) * heads + head, there, KEY_SIZE, KEY_LOW, KEY_REST
    )
    low, rest = no_values(TILE, VALUE_LOW, VALUE_REST)

    own_table = table + sequence.to(tl.int64) * table_width
    # Blocks of which every query sees all lie between two others.
    free, free_end = end, end
    if not SPLIT:
        free_end = tl.maximum((earliest + 1) // BLOCK * BLOCK, begin)
        free = begin
        if WINDOWED:
            free = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK) * BLOCK
            free = tl.maximum(tl.minimum(free, free_end), begin)
    if SPLIT or WINDOWED:
        most, total, low, rest = _read(
            begin, free, end, oldest, most, total, low, rest, query_low, query_rest, position,
            keys, values, own_table, key_heads, key_head, window, inner_scale, outer_scale,
            KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW, VALUE_REST, PAGE_TOKENS, BLOCK,
            PRODUCT, SHARED, WINDOWED, CAPPED, True,
        )  # fmt: skip
    if not SPLIT:
        most, total, low, rest = _read(
            free, free_end, end, oldest, most, total, low, rest, query_low, query_rest, position,
            keys, values, own_table, key_heads, key_head, window, inner_scale, outer_scale,
            KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW, VALUE_REST, PAGE_TOKENS, BLOCK,
            PRODUCT, SHARED, WINDOWED, CAPPED, False,
        )  # fmt: skip
        most, total, low, rest = _read(
            free_end, end, end, oldest, most, total, low, rest, query_low, query_rest, position,
            keys, values, own_table, key_heads, key_head, window, inner_scale, outer_scale,
            KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW, VALUE_REST, PAGE_TOKENS, BLOCK,
            PRODUCT, SHARED, WINDOWED, CAPPED, True,
        )  # fmt: skip

    if SPLIT:
        tl.store(states + place * 2, most, mask=there)
        tl.store(states + place * 2 + 1, total, mask=there)
        put(sums, place, there, low, rest, VALUE_SIZE, VALUE_LOW, VALUE_REST)
    else:
        low = low / total[:, None]
        rest = rest / total[:, None]
        place = (first_row + row) * heads + head
        put(out, place, there, low, rest, VALUE_SIZE, VALUE_LOW, VALUE_REST)


@triton.jit
def _read(
    begin: tl.tensor,
    stop: tl.tensor,
    end: tl.tensor,
    oldest: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    low: tl.tensor,
    rest: tl.tensor,
    query_low: tl.tensor,
    query_rest: tl.tensor,
    position: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    key_heads: tl.tensor,
    key_head: tl.tensor,
    window: tl.tensor,
    inner_scale: tl.tensor,
    outer_scale: tl.tensor,
    KEY_SIZE: tl.constexpr,
    KEY_LOW: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_REST: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """(most, total, low, rest) after the blocks from `begin` up to `stop`.

    Args:
        begin: a multiple of BLOCK.
        end: there is nothing from this position on; looked at if MASKED, as are `oldest`, before
            which there is nothing, and `window`.
        position: int32 [queries].
        table: int32 [pages], of the sequence.
    """
    for start in range(begin, stop, BLOCK):
        place = start + tl.arange(0, BLOCK)
        held = place < end
        if WINDOWED:
            held = held & (place >= oldest)
        entry = consecutive(table, start, held, PAGE_TOKENS, BLOCK) * key_heads + key_head
        seen = place[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (place[None, :] > position[:, None] - window)
        most, total, low, rest = add_block(
            entry, held, seen, most, total, low, rest, query_low, query_rest, keys, values,
            inner_scale, outer_scale, KEY_SIZE, KEY_LOW, KEY_REST, VALUE_SIZE, VALUE_LOW,
            VALUE_REST, BLOCK, PRODUCT, SHARED, CAPPED, MASKED,
        )  # fmt: skip
    return most, total, low, rest


@triton.jit(do_not_specialize=["parts"])
def combine(
    sums: tl.tensor,
    states: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    parts: tl.tensor,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What the parts of one row and head, the numbers of the program, make together.

    Args:
        sums: float32 [rows, heads, parts, SIZE]: weighted values, as multiples of 2^most.
        states: float32 [rows, heads, parts, 2]: most, and the sum of weights; sums are not looked
            at where it is zero.
        rows: int32 [rows]; which rows of the result these are.
        out: float32 [rows of the result, heads, SIZE].
    """
    row, head = tl.program_id(0), tl.program_id(1)
    own = (row.to(tl.int64) * heads + head) * parts
    column = tl.arange(0, COLUMNS)
    most = NOTHING
    total = 0.0
    mixed = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        state = states + (own + part) * 2
        some_most = tl.load(state, mask=part < parts, other=NOTHING)
        some_total = tl.load(state + 1, mask=part < parts, other=0.0)
        read = (some_total > 0)[:, None] & (column < SIZE)[None, :]
        places = sums + (own + part)[:, None] * SIZE + column[None, :]
        values = tl.load(places, mask=read, other=0.0)
        largest = tl.maximum(most, tl.max(some_most, 0))
        faded = tl.exp2(most - largest)
        weights = tl.exp2(some_most - largest)
        total = total * faded + tl.sum(some_total * weights, 0)
        mixed = mixed * faded + tl.sum(values * weights[:, None], 0)
        most = largest
    target = out + (tl.load(rows + row).to(tl.int64) * heads + head) * SIZE + column
    tl.store(target, mixed / total, mask=column < SIZE)
