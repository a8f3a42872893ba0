"""Launches of the kernels of paged attention, with sizes for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from firstlight.backends.kernel import Parameter
from firstlight.backends.torch.paging import page_table
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.attention_plan import (
    Columns,
    Plan,
    ProductKind,
    columns,
    plan,
    power_of_two,
    shared_columns,
)
from firstlight.backends.torch.triton.launching import on, shared_memory
from firstlight.backends.torch.triton.paged_attention import attend, combine
from firstlight.backends.torch.triton.query_tiles import (
    LEAST_PART,
    MOST_PARTS,
    Tiles,
    split_tiles,
    whole_tiles,
)
from firstlight.ops.paging import PagedRows

PARAMETERS = (
    Parameter("tile", (0, 32, 64, 128), 0),
    Parameter("warps", (0, 2, 4, 8), 0),
    Parameter("stages", (0, 1, 2, 3, 4), 0),
)
"""What leaves every sum as it is: the queries of a tile where a sequence has many rows, and
Triton's own; 0 leaves the choice to `plan`."""

COMBINED = 16
"""Parts that are joined at a time."""

_LOG2_E = math.log2(math.e)
_MANY = 1 << 16


@dataclass(frozen=True)
class Call:
    """What is asked for by `attention`, `attention_with_sinks` or `latent_attention`.

    Attributes:
        queries: float32 [rows, heads, key size].
        keys: pages [pages, page_tokens, key heads, key size].
        values: pages [pages, page_tokens, key heads, value size]; None: the first `value_size`
            columns of the keys.
        sinks: float32 [heads]; None: there are none.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor | None
    value_size: int
    rows: PagedRows
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def group(self) -> int:
        """Heads that share a key head."""
        return self.queries.shape[1] // self.keys.shape[2]


def run(
    call: Call, kind: ProductKind, transfer: Transfer, tile: int, warps: int, stages: int
) -> torch.Tensor:
    """float32 [rows, heads, value size].

    Args:
        kind: of products; see `softmax.product`.
        tile, warps, stages: PARAMETERS.
    """
    count, heads, _ = call.queries.shape
    shape = (count, heads, call.value_size)
    out = torch.empty(shape, dtype=torch.float32, device=call.queries.device)
    memory = shared_memory(transfer.device)
    with on(transfer.device):
        few = _plan(call, kind, call.group, memory)
        few = replace(few, warps=warps or few.warps, stages=stages or few.stages)
        split = split_tiles(call.rows, call.window, call.group, few.tile, transfer)
        if split is not None:
            _launch_split(call, kind, few, split, out, transfer)
        many = _plan(call, kind, _MANY, memory)
        sizes = (tile or many.tile, many.block, warps or many.warps, stages or many.stages)
        many = Plan(*sizes)
        whole = whole_tiles(call.rows, call.group, many.tile, transfer)
        if whole is not None:
            _launch(call, kind, many, whole, out, None, transfer)
    return out


def _plan(call: Call, kind: ProductKind, queries: int, memory: int) -> Plan:
    return plan(queries, *_columns(call), call.values is None, kind, memory)


def _columns(call: Call) -> tuple[Columns, Columns]:
    """Of keys and values."""
    if call.values is None:
        return shared_columns(call.keys.shape[3], call.value_size)
    return columns(call.keys.shape[3]), columns(call.value_size)


def _launch_split(
    call: Call,
    kind: ProductKind,
    sizes: Plan,
    tiles: Tiles,
    out: torch.Tensor,
    transfer: Transfer,
) -> None:
    heads = call.queries.shape[1]
    if tiles.parts == 1:
        # Joining a single part changes nothing.
        return _launch(call, kind, sizes, tiles, out, None, transfer)
    count = len(tiles.rows)
    parts = (count, heads, tiles.parts)
    sums = torch.empty((*parts, call.value_size), dtype=torch.float32, device=out.device)
    states = torch.empty((*parts, 2), dtype=torch.float32, device=out.device)
    _launch(call, kind, sizes, tiles, out, (sums, states), transfer)
    combine[(count, heads)](
        *(sums, states, tiles.rows, out, heads, tiles.parts),
        SIZE=call.value_size,
        COLUMNS=power_of_two(call.value_size),
        BLOCK=COMBINED,
    )
    return None


def _launch(
    call: Call,
    kind: ProductKind,
    sizes: Plan,
    tiles: Tiles,
    out: torch.Tensor,
    parts: tuple[torch.Tensor, torch.Tensor] | None,
    transfer: Transfer,
) -> None:
    queries = call.queries.contiguous()
    table = page_table(call.rows, transfer)
    key, value = _columns(call)
    inner, outer = 1.0, call.scale * _LOG2_E
    if call.soft_cap is not None:
        inner, outer = call.scale / call.soft_cap, call.soft_cap * _LOG2_E
    sums, states = (out, out) if parts is None else parts
    grid = (len(tiles.numbers), call.keys.shape[2], 1 if parts is None else tiles.parts)
    attend[grid](
        *(queries, call.keys, call.keys if call.values is None else call.values),
        *(queries if call.sinks is None else call.sinks, out, sums, states, tiles.numbers),
        *(table, table.shape[1], call.keys.shape[2], call.group, call.window or 0, inner, outer),
        KEY_SIZE=key.size,
        KEY_LOW=key.low,
        KEY_REST=key.rest,
        VALUE_SIZE=value.size,
        VALUE_LOW=value.low,
        VALUE_REST=value.rest,
        PAGE_TOKENS=call.rows.page_tokens,
        TILE=sizes.tile,
        BLOCK=sizes.block,
        PRODUCT=kind,
        SHARED=call.values is None,
        WINDOWED=call.window is not None,
        CAPPED=call.soft_cap is not None,
        SINKS=call.sinks is not None,
        SPLIT=parts is not None,
        LEAST_PART=LEAST_PART,
        MOST_PARTS=MOST_PARTS,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
    )
