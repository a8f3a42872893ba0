"""Attention over pages where they lie: the kernels themselves.

A program computes a tile of queries of one sequence that share a key head. It goes through the
positions that they see block by block, finds each entry through the page table, and goes on with
one softmax. Where a sequence has few rows, several programs take a part of the positions each, and
`combine` joins what they found (flash-decoding; Dao, Haziza, Massa and Sizov 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

from firstlight.backends.torch.triton.softmax import NOTHING, product, tanh, weigh


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
        inner_scale, outer_scale: products become outer_scale * tanh(inner_scale * product) if
            CAPPED, else outer_scale * product; exponents of two.
        KEY_LOW, KEY_REST: powers of two; the columns that are multiplied together: as many from the
            first on, and the others. KEY_REST is 0 where there are no others.
        SHARED: values are the first VALUE_SIZE columns of the keys.
        PRODUCT: see `product`.
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

    most = tl.full((TILE,), NOTHING, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    if SINKS:  # noqa: SIM102 - only one of the two is known when this is compiled
        if part == 0:
            most = tl.load(sinks + head, mask=there, other=0.0) * 1.4426950408889634
            total = tl.full((TILE,), 1.0, tl.float32)
    if SPLIT:  # noqa: SIM102
        if begin >= end:
            # `combine` does not read the sums of a part whose total is nothing.
            tl.store(states + place * 2, most, mask=there)
            tl.store(states + place * 2 + 1, total, mask=there)
            return

    key_column = tl.arange(0, KEY_LOW)
    asked = queries + ((first_row + row) * heads + head)[:, None] * KEY_SIZE
    wanted = there[:, None] & (key_column < KEY_SIZE)[None, :]
    query_low = tl.load(asked + key_column[None, :], mask=wanted, other=0.0)
    query_rest = query_low
    if KEY_REST > 0:
        key_column = KEY_LOW + tl.arange(0, KEY_REST)
        wanted = there[:, None] & (key_column < KEY_SIZE)[None, :]
        query_rest = tl.load(asked + key_column[None, :], mask=wanted, other=0.0)
    low = tl.zeros((TILE, VALUE_LOW), tl.float32)
    rest = low
    if VALUE_REST > 0:
        rest = tl.zeros((TILE, VALUE_REST), tl.float32)

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
        target = sums + place * VALUE_SIZE
    else:
        low = low / total[:, None]
        rest = rest / total[:, None]
        target = out + ((first_row + row) * heads + head) * VALUE_SIZE
    column = tl.arange(0, VALUE_LOW)
    written = there[:, None] & (column < VALUE_SIZE)[None, :]
    tl.store(target[:, None] + column[None, :], low, mask=written)
    if VALUE_REST > 0:
        column = VALUE_LOW + tl.arange(0, VALUE_REST)
        written = there[:, None] & (column < VALUE_SIZE)[None, :]
        tl.store(target[:, None] + column[None, :], rest, mask=written)


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
        if PAGE_TOKENS % BLOCK == 0:
            page = tl.load(table + start // PAGE_TOKENS).to(tl.int64)
            entry = page * PAGE_TOKENS + start % PAGE_TOKENS + tl.arange(0, BLOCK)
        else:
            page = tl.load(table + place // PAGE_TOKENS, mask=held, other=0).to(tl.int64)
            entry = page * PAGE_TOKENS + place % PAGE_TOKENS
        entry = entry * key_heads + key_head
        key = _columns(keys, entry, held, KEY_SIZE, 0, KEY_LOW, MASKED)
        zeros = tl.zeros((query_low.shape[0], BLOCK), tl.float32)
        exponents = product(query_low, tl.trans(_wide(key, PRODUCT)), zeros, PRODUCT)
        key_rest = key
        if KEY_REST > 0:
            key_rest = _columns(keys, entry, held, KEY_SIZE, KEY_LOW, KEY_REST, MASKED)
            right = tl.trans(_wide(key_rest, PRODUCT))
            exponents = product(query_rest, right, exponents, PRODUCT)
        if CAPPED:
            exponents = tanh(exponents * inner_scale)
        exponents *= outer_scale
        if MASKED:
            seen = place[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (place[None, :] > position[:, None] - window)
            exponents = tl.where(seen, exponents, float("-inf"))
        weights, most, total, faded = weigh(exponents, most, total, PRODUCT)
        value = key
        if not SHARED:
            value = _columns(values, entry, held, VALUE_SIZE, 0, VALUE_LOW, MASKED)
        low = product(weights, _wide(value, PRODUCT), low * faded[:, None], PRODUCT)
        if VALUE_REST > 0:
            value = key_rest
            if not SHARED:
                value = _columns(values, entry, held, VALUE_SIZE, VALUE_LOW, VALUE_REST, MASKED)
            rest = product(weights, _wide(value, PRODUCT), rest * faded[:, None], PRODUCT)
    return most, total, low, rest


@triton.jit
def _columns(
    pages: tl.tensor,
    entry: tl.tensor,
    held: tl.tensor,
    SIZE: tl.constexpr,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """[entries, COUNT]: columns of entries from FIRST on; zero where there are none."""
    column = FIRST + tl.arange(0, COUNT)
    places = pages + entry[:, None] * SIZE + column[None, :]
    if MASKED:
        found = tl.load(places, mask=held[:, None] & (column < SIZE)[None, :], other=0.0)
    elif FIRST + COUNT > SIZE:
        found = tl.load(places, mask=(column < SIZE)[None, :], other=0.0)
    else:
        found = tl.load(places)
    return found


@triton.jit
def _wide(entries: tl.tensor, PRODUCT: tl.constexpr) -> tl.tensor:
    """Entries as the right side of a product."""
    if PRODUCT == "float32":
        entries = entries.to(tl.float32)
    return entries


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
