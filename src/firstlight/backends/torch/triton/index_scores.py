"""The choice of entries: their scores read pages where they lie; the largest are found as ever."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.kernel import Kernel, Parameter
from firstlight.backends.torch.paging import MOST_SCORES, padded, page_table
from firstlight.backends.torch.selection import largest
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.attention import STORED, product_kind
from firstlight.backends.torch.triton.attention_plan import columns, power_of_two
from firstlight.backends.torch.triton.entry_blocks import asked, consecutive, wide
from firstlight.backends.torch.triton.entry_blocks import columns as read_columns
from firstlight.backends.torch.triton.launching import on
from firstlight.backends.torch.triton.row_forms import row_places, rows_beyond
from firstlight.backends.torch.triton.sizes import quotient
from firstlight.backends.torch.triton.softmax import product
from firstlight.ops.paging import PagedRows

PARAMETERS = (Parameter("warps", (4, 2, 8), 4), Parameter("stages", (2, 1, 3, 4), 2))

_MOST_HEADS = 128
"""Of a row: a program has them all, and their products with a block lie in registers."""

_MOST_COLUMNS = 256
"""Of a key, for the same reason."""

_BLOCK = 32
_BLOCKS = 16
"""Entries that are read at a time, and how often by a program."""


class IndexScores:
    """The kernel of one device."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("select_entries", "paged", self.select_entries, _accepts, parameters=PARAMETERS),
        )

    def select_entries(
        self,
        queries: torch.Tensor,
        weights: torch.Tensor,
        keys: torch.Tensor,
        rows: PagedRows,
        stride: int,
        top_k: int,
        warps: int = 4,
        stages: int = 2,
    ) -> torch.Tensor:
        """int32 on the device, as of the op of that name."""
        places = row_places(rows, self._transfer)
        seen = torch.div(places[:, 1:] + 1, stride, rounding_mode="floor")
        each = torch.arange(top_k, dtype=torch.int32, device=queries.device)
        out = torch.where(each < seen, each, -1)
        # Who sees no more than that has its choice already.
        beyond = rows_beyond(rows, stride, top_k, self._transfer)
        if beyond is None:
            return out
        given = queries.contiguous(), weights.contiguous(), keys
        width = padded((beyond[0].last + 1) // stride)
        together = max(1, MOST_SCORES // width)
        for start in range(0, len(beyond[1]), together):
            some = beyond[1][start : start + together]
            scores = self._scores(*given, rows, stride, some, width, warps, stages)
            few = seen.index_select(0, some) <= top_k
            found = torch.where(few, out.index_select(0, some), largest(scores, top_k))
            out.index_copy_(0, some, found)
        return out

    def _scores(
        self,
        queries: torch.Tensor,
        weights: torch.Tensor,
        keys: torch.Tensor,
        rows: PagedRows,
        stride: int,
        numbers: torch.Tensor,
        width: int,
        warps: int,
        stages: int,
    ) -> torch.Tensor:
        """float32 [numbers, width]; minus infinity for entries that are not seen."""
        _, heads, size = queries.shape
        scores = torch.empty((len(numbers), width), dtype=torch.float32, device=queries.device)
        table = page_table(rows, self._transfer)
        cut = columns(size)
        with on(self._transfer.device):
            _score_entries[(len(numbers), quotient(width, _BLOCK * _BLOCKS))](
                *(queries, weights, keys, scores, numbers, row_places(rows, self._transfer)),
                *(table, table.shape[1], heads, stride, width),
                SIZE=size,
                LOW=cut.low,
                REST=cut.rest,
                HEADS=power_of_two(heads),
                PAGE_ENTRIES=keys.shape[1],
                BLOCK=_BLOCK,
                BLOCKS=_BLOCKS,
                PRODUCT=product_kind(keys, rounds=False),
                num_warps=warps,
                num_stages=stages,
            )
        return scores


def _accepts(
    queries: torch.Tensor,
    weights: torch.Tensor,
    keys: torch.Tensor,
    rows: PagedRows,
    stride: int,
    top_k: int,
) -> bool:
    _, heads, size = queries.shape
    return (
        heads <= _MOST_HEADS
        and size <= _MOST_COLUMNS
        and keys.dtype in STORED
        and keys.is_contiguous()
        and keys.shape[1] * stride == rows.page_tokens
    )


@triton.jit(do_not_specialize=["table_width", "width"])
def _score_entries(
    queries: tl.tensor,
    weights: tl.tensor,
    keys: tl.tensor,
    scores: tl.tensor,
    numbers: tl.tensor,
    places: tl.tensor,
    table: tl.tensor,
    table_width: tl.tensor,
    heads: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,
    LOW: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
    PAGE_ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:
    """Of one row BLOCKS blocks of entries, the two numbers of the program: sum over heads of
    weight * relu(query . key).

    Args:
        queries: float32 [rows, heads, SIZE].
        weights: float32 [rows, heads].
        keys: pages [pages, PAGE_ENTRIES, SIZE] of runs of `stride` positions.
        scores: float32 [numbers, width], written.
        numbers: int64; which rows these are.
        places: int32 [rows, 2]: each row's sequence and position.
        table: int32 [sequences, table_width], pages.
        LOW, REST, PRODUCT: see `add_block`.
    """
    index = tl.program_id(0)
    row = tl.load(numbers + index)
    sequence = tl.load(places + row * 2).to(tl.int64)
    count = (tl.load(places + row * 2 + 1) + 1) // stride
    target = scores + index.to(tl.int64) * width
    first = tl.program_id(1) * (BLOCK * BLOCKS)
    last = tl.minimum(first + BLOCK * BLOCKS, width)
    end = tl.minimum(last, count)

    head = tl.arange(0, HEADS)
    there = head < heads
    weight = tl.load(weights + row * heads + head, mask=there, other=0.0)
    query_low, query_rest = asked(queries, row * heads + head, there, SIZE, LOW, REST)
    own_table = table + sequence * table_width
    for start in range(first, end, BLOCK):
        number = start + tl.arange(0, BLOCK)
        held = number < end
        entry = consecutive(own_table, start, held, PAGE_ENTRIES, BLOCK)
        key = wide(read_columns(keys, entry, held, SIZE, 0, LOW, True), PRODUCT)
        zeros = tl.zeros((HEADS, BLOCK), tl.float32)
        each = product(query_low, tl.trans(key), zeros, PRODUCT)
        if REST > 0:
            key = wide(read_columns(keys, entry, held, SIZE, LOW, REST, True), PRODUCT)
            each = product(query_rest, tl.trans(key), each, PRODUCT)
        # Of a number that is none the score is none either.
        each = tl.where(each <= 0, 0.0, each) * weight[:, None]
        tl.store(target + number, tl.sum(each, 0), mask=held)
    for start in range(tl.maximum(first, end), last, BLOCK):
        number = start + tl.arange(0, BLOCK)
        tl.store(target + number, float("-inf"), mask=number < last)
