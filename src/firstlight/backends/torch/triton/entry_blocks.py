"""What attention does with a block of entries, wherever they lie: find, read, score and add them.

Kernels differ in which entries a query sees; from there on they are one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from firstlight.backends.torch.triton.softmax import NOTHING, product, tanh, weigh

# Where entries lie ------------------------------------------------------------------------------


@triton.jit
def consecutive(
    table: tl.tensor,
    start: tl.tensor,
    held: tl.tensor,
    PAGE_ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """int64 [BLOCK]: the entries from `start` on, counted through all pages.

    Args:
        table: int32 [pages], of the sequence.
        start: a multiple of BLOCK.
        held: bool [BLOCK]; which of them there are.
    """
    if PAGE_ENTRIES % BLOCK == 0:
        page = tl.load(table + start // PAGE_ENTRIES).to(tl.int64)
        entry = page * PAGE_ENTRIES + start % PAGE_ENTRIES + tl.arange(0, BLOCK)
    else:
        entry = scattered(table, start + tl.arange(0, BLOCK), held, PAGE_ENTRIES)
    return entry


@triton.jit
def scattered(
    table: tl.tensor, number: tl.tensor, held: tl.tensor, PAGE_ENTRIES: tl.constexpr
) -> tl.tensor:
    """int64 of the shape of `number`: these entries, counted through all pages.

    Args:
        table: int32 [pages], of the sequence.
        number: of each entry within the sequence; looked at where it is `held`.
    """
    page = tl.load(table + number // PAGE_ENTRIES, mask=held, other=0).to(tl.int64)
    return page * PAGE_ENTRIES + number % PAGE_ENTRIES


@triton.jit
def columns(
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


# A tile of queries -------------------------------------------------------------------------------


@triton.jit
def begin_softmax(
    sinks: tl.tensor,
    head: tl.tensor,
    there: tl.tensor,
    part: tl.tensor,
    TILE: tl.constexpr,
    PRODUCT: tl.constexpr,
    SINKS: tl.constexpr,
) -> tl.tensor:
    """(most, total), float32 [TILE], of queries that have seen nothing; the first part of a context
    has its head's sink.

    Args:
        sinks: float32 [heads], read if SINKS.
    """
    most = tl.full((TILE,), NOTHING, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    if SINKS:  # noqa: SIM102 - only one of the two is known when this is compiled
        if part == 0:
            most = tl.load(sinks + head, mask=there, other=0.0) * 1.4426950408889634
            total = tl.full((TILE,), 1.0, tl.float32)
            if PRODUCT == "bfloat16":
                # `most` is a whole number then; see `weigh`.
                sink = most
                most = tl.ceil(sink)
                total = tl.exp2(sink - most)
    return most, total


@triton.jit
def asked(
    queries: tl.tensor,
    query: tl.tensor,
    there: tl.tensor,
    SIZE: tl.constexpr,
    LOW: tl.constexpr,
    REST: tl.constexpr,
) -> tl.tensor:
    """float32 [queries, LOW] and [queries, REST]: their columns as they are multiplied together;
    where REST is 0 the second stands for nothing.

    Args:
        queries: float32 [.., SIZE], of which `query` are looked at, where they are `there`.
    """
    low = columns(queries, query, there, SIZE, 0, LOW, True)
    rest = low
    if REST > 0:
        rest = columns(queries, query, there, SIZE, LOW, REST, True)
    return low, rest


@triton.jit
def no_values(
    TILE: tl.constexpr,
    LOW: tl.constexpr,
    REST: tl.constexpr,
) -> tl.tensor:
    """Sums of weighted values, float32 [TILE, LOW] and [TILE, REST], before the first block."""
    low = tl.zeros((TILE, LOW), tl.float32)
    rest = low
    if REST > 0:
        rest = tl.zeros((TILE, REST), tl.float32)
    return low, rest


@triton.jit
def add_block(
    entry: tl.tensor,
    held: tl.tensor,
    seen: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    low: tl.tensor,
    rest: tl.tensor,
    query_low: tl.tensor,
    query_rest: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    inner_scale: tl.tensor,
    outer_scale: tl.tensor,
    KEY_SIZE: tl.constexpr,
    KEY_LOW: tl.constexpr,
    KEY_REST: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_LOW: tl.constexpr,
    VALUE_REST: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
    SHARED: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """(most, total, low, rest) after a block of entries.

    Args:
        entry: int64 [BLOCK]; where they lie, in keys and in values.
        held: bool [BLOCK]; which of them there are, looked at if MASKED.
        seen: bool [queries or 1, BLOCK]; which of them a query sees, looked at if MASKED.
        most, total: float32 [queries]; see softmax.py.
        low, rest: float32, sums of the first VALUE_LOW columns of values, and of the others.
        query_low, query_rest: as `asked` gives them.
        keys, values: [.., size].
        inner_scale, outer_scale: products become outer_scale * tanh(inner_scale * product) if
            CAPPED, else outer_scale * product; exponents of two.
        KEY_LOW, KEY_REST: powers of two; the columns that are multiplied together: as many from the
            first on, and the others. KEY_REST is 0 where there are no others.
        SHARED: values are the first VALUE_SIZE columns of the keys.
        PRODUCT: see `product`.
    """
    key = columns(keys, entry, held, KEY_SIZE, 0, KEY_LOW, MASKED)
    zeros = tl.zeros((query_low.shape[0], BLOCK), tl.float32)
    exponents = product(query_low, tl.trans(wide(key, PRODUCT)), zeros, PRODUCT)
    key_rest = key
    if KEY_REST > 0:
        key_rest = columns(keys, entry, held, KEY_SIZE, KEY_LOW, KEY_REST, MASKED)
        exponents = product(query_rest, tl.trans(wide(key_rest, PRODUCT)), exponents, PRODUCT)
    if CAPPED:
        exponents = tanh(exponents * inner_scale)
    exponents *= outer_scale
    if MASKED:
        exponents = tl.where(seen, exponents, float("-inf"))
    weights, most, total, faded = weigh(exponents, most, total, PRODUCT)
    value = key
    if not SHARED:
        value = columns(values, entry, held, VALUE_SIZE, 0, VALUE_LOW, MASKED)
    low = product(weights, wide(value, PRODUCT), low * faded[:, None], PRODUCT)
    if VALUE_REST > 0:
        value = key_rest
        if not SHARED:
            value = columns(values, entry, held, VALUE_SIZE, VALUE_LOW, VALUE_REST, MASKED)
        rest = product(weights, wide(value, PRODUCT), rest * faded[:, None], PRODUCT)
    return most, total, low, rest


@triton.jit
def wide(entries: tl.tensor, PRODUCT: tl.constexpr) -> tl.tensor:
    """Entries as the right side of a product."""
    if PRODUCT == "float32":
        entries = entries.to(tl.float32)
    return entries


@triton.jit
def put(
    target: tl.tensor,
    place: tl.tensor,
    there: tl.tensor,
    low: tl.tensor,
    rest: tl.tensor,
    SIZE: tl.constexpr,
    LOW: tl.constexpr,
    REST: tl.constexpr,
) -> None:
    """Write both halves of values where `place` says in a target [.., SIZE]."""
    own = target + place[:, None] * SIZE
    column = tl.arange(0, LOW)
    tl.store(own + column[None, :], low, mask=there[:, None] & (column < SIZE)[None, :])
    if REST > 0:
        column = LOW + tl.arange(0, REST)
        tl.store(own + column[None, :], rest, mask=there[:, None] & (column < SIZE)[None, :])
