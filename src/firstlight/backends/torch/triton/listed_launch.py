"""Launches of the kernel of attention over chosen and compressed entries, sized for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from firstlight.backends.kernel import Parameter
from firstlight.backends.torch.paging import page_table
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.attention_launch import COMBINED
from firstlight.backends.torch.triton.attention_plan import (
    Plan,
    ProductKind,
    plan,
    power_of_two,
    shared_columns,
)
from firstlight.backends.torch.triton.launching import on, shared_memory
from firstlight.backends.torch.triton.listed_attention import attend_listed
from firstlight.backends.torch.triton.paged_attention import combine
from firstlight.backends.torch.triton.query_tiles import MOST_PARTS
from firstlight.backends.torch.triton.row_forms import row_places, rows_of_form
from firstlight.backends.torch.triton.sizes import quotient
from firstlight.ops.paging import PagedRows

PARAMETERS = (
    Parameter("tile", (0, 16, 32, 64), 0),
    Parameter("warps", (0, 2, 4, 8), 0),
    Parameter("stages", (0, 1, 2, 3, 4), 0),
)
"""What leaves every sum as it is: the heads of a program, and Triton's own; 0 leaves the choice to
`plan`."""

LEAST_PART = 128
"""Entries of a part, where MOST_PARTS of them reach. A list is short beside a context, and each of
its entries is a read by itself: there are to be many in flight."""

MOST_SUMS = 1 << 24
"""Values that the parts of a launch keep for `combine`: rows beyond that wait for the next one."""

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class NearStream:
    """Positions near by: the stream's pages [pages, page_tokens, 1, size], the rows in it, and how
    many positions a row sees."""

    keys: torch.Tensor
    rows: PagedRows
    window: int


@dataclass(frozen=True)
class Call:
    """What is asked for by `compressed_attention` or `selected_latent_attention`.

    Attributes:
        queries: float32 [rows, heads, size].
        entries: pages [pages, page_tokens / stride, size].
        value_size: so many of an entry's first columns are its values.
        rows: where each row's sequence lies in the stream of entries.
        stride: positions of an entry.
        chosen: int32 [rows, k] on the device; None: a row sees all entries that are complete.
        near: None: nothing near by is seen.
        sinks: float32 [heads]; None: there are none.
    """

    queries: torch.Tensor
    entries: torch.Tensor
    value_size: int
    rows: PagedRows
    stride: int
    chosen: torch.Tensor | None
    scale: float
    near: NearStream | None = None
    sinks: torch.Tensor | None = None

    def blocks(self, position: int, block: int) -> int:
        """Blocks that no row up to this position sees more of."""
        seen = (position + 1) // self.stride
        if self.chosen is not None:
            seen = min(seen, self.chosen.shape[1])
        near = 0
        if self.near is not None:
            near = min(quotient(self.near.window - 1, block), position // block) + 1
        return near + quotient(seen, block)


def run(
    call: Call, kind: ProductKind, transfer: Transfer, tile: int, warps: int, stages: int
) -> torch.Tensor:
    """float32 [rows, heads, value size].

    Args:
        kind: of products; see `softmax.product`.
        tile, warps, stages: PARAMETERS.
    """
    count, heads, size = call.queries.shape
    shape = (count, heads, call.value_size)
    out = torch.empty(shape, dtype=torch.float32, device=call.queries.device)
    key, value = shared_columns(size, call.value_size)
    with on(transfer.device):
        found = plan(heads, key, value, True, kind, shared_memory(transfer.device))
        sizes = Plan(
            min(tile, power_of_two(heads)) or found.tile,
            found.block,
            warps or found.warps,
            stages or found.stages,
        )
        for few in (True, False):
            rows = rows_of_form(call.rows, few, transfer)
            if rows is not None:
                parts = _parts(call, rows.last, sizes.block) if few else 1
                _launch_all(call, kind, sizes, rows.numbers, parts, out, transfer)
    return out


def _parts(call: Call, last: int, block: int) -> int:
    """Into how many parts what rows up to this position see is split."""
    parts = min(MOST_PARTS, quotient(call.blocks(last, block), LEAST_PART // block))
    # Few numbers of parts, for steps that are recorded once; a part without entries is empty.
    return 1 << (parts - 1).bit_length()


def _launch_all(
    call: Call,
    kind: ProductKind,
    sizes: Plan,
    numbers: torch.Tensor,
    parts: int,
    out: torch.Tensor,
    transfer: Transfer,
) -> None:
    """Of these rows, in as many parts each."""
    if parts == 1:
        # Joining a single part changes nothing.
        return _launch(call, kind, sizes, numbers, out, None, transfer)
    heads = call.queries.shape[1]
    for some in _together(numbers, heads * parts * call.value_size):
        shape = (len(some), heads, parts)
        sums = torch.empty((*shape, call.value_size), dtype=torch.float32, device=out.device)
        states = torch.empty((*shape, 2), dtype=torch.float32, device=out.device)
        _launch(call, kind, sizes, some, out, (sums, states), transfer)
        combine[(len(some), heads)](
            *(sums, states, some, out, heads, parts),
            SIZE=call.value_size,
            COLUMNS=power_of_two(call.value_size),
            BLOCK=COMBINED,
        )
    return None


def _together(numbers: torch.Tensor, values: int) -> Iterator[torch.Tensor]:
    """Rows whose parts are kept at once, of so many values each."""
    together = max(1, MOST_SUMS // values)
    for start in range(0, len(numbers), together):
        yield numbers[start : start + together]


def _launch(
    call: Call,
    kind: ProductKind,
    sizes: Plan,
    numbers: torch.Tensor,
    out: torch.Tensor,
    parts: tuple[torch.Tensor, torch.Tensor] | None,
    transfer: Transfer,
) -> None:
    queries = call.queries.contiguous()
    heads = queries.shape[1]
    table = page_table(call.rows, transfer)
    key, value = shared_columns(queries.shape[2], call.value_size)
    near, near_table, window, near_entries = call.entries, table, 0, 0
    if call.near is not None:
        near, window, near_entries = call.near.keys, call.near.window, call.near.keys.shape[1]
        near_table = page_table(call.near.rows, transfer)
    sums, states = (out, out) if parts is None else parts
    chosen = numbers if call.chosen is None else call.chosen
    grid = (len(numbers) * quotient(heads, sizes.tile), 1 if parts is None else sums.shape[2])
    attend_listed[grid](
        *(queries, near, call.entries, chosen, queries if call.sinks is None else call.sinks),
        *(out, sums, states, numbers, row_places(call.rows, transfer)),
        *(near_table, near_table.shape[1], table, table.shape[1], chosen.shape[-1]),
        *(heads, window, call.stride, call.scale * _LOG2_E),
        KEY_SIZE=key.size,
        KEY_LOW=key.low,
        KEY_REST=key.rest,
        VALUE_SIZE=value.size,
        VALUE_LOW=value.low,
        VALUE_REST=value.rest,
        NEAR_ENTRIES=near_entries,
        PAGE_ENTRIES=call.entries.shape[1],
        TILE=sizes.tile,
        BLOCK=sizes.block,
        PRODUCT=kind,
        CHOSEN=call.chosen is not None,
        SINKS=call.sinks is not None,
        SPLIT=parts is not None,
        PART_BLOCKS=LEAST_PART // sizes.block,
        MOST_PARTS=MOST_PARTS,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
    )
