"""Attention over chosen and compressed entries: one `Kernel` for each op and rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from firstlight.backends.kernel import Kernel
from firstlight.backends.torch.selection import choice_on_device
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.attention import STORED, product_kind
from firstlight.backends.torch.triton.attention_plan import power_of_two
from firstlight.backends.torch.triton.listed_launch import PARAMETERS, Call, NearStream, run
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16, no_rounding
from firstlight.ops.select_entries import Integers

Choice = torch.Tensor | Integers | None


def listed_kernels(transfer: Transfer, exact: bool) -> tuple[Kernel, ...]:
    """The kernels of one device, in order of preference within an op.

    Args:
        exact: round no queries and no weights of the softmax.
    """
    return tuple(_kernels(transfer, exact))


def _kernels(transfer: Transfer, exact: bool) -> Iterator[Kernel]:
    for op, call_of in (
        ("compressed_attention", _compressed_attention),
        ("selected_latent_attention", _selected_latent_attention),
    ):
        for rounds in (False,) if exact else (True, False):
            yield Kernel(
                op,
                "paged_bfloat16" if rounds else "paged",
                partial(_run, call_of, transfer, rounds),
                partial(_accepts, call_of, transfer, rounds),
                bfloat16_for_bfloat16 if rounds else no_rounding,
                PARAMETERS,
                _allows,
            )


def _compressed_attention(
    transfer: Transfer,
    queries: torch.Tensor,
    keys: torch.Tensor,
    rows: PagedRows,
    window: int,
    entries: torch.Tensor,
    entry_rows: PagedRows,
    stride: int,
    chosen: Choice,
    scale: float,
    sinks: torch.Tensor,
) -> Call:
    near = NearStream(keys, rows, window)
    found = _on_device(chosen, transfer)
    size = queries.shape[2]
    return Call(queries, entries, size, entry_rows, stride, found, scale, near, sinks)


def _selected_latent_attention(
    transfer: Transfer,
    queries: torch.Tensor,
    entries: torch.Tensor,
    value_size: int,
    rows: PagedRows,
    selected: torch.Tensor | Integers,
    scale: float,
) -> Call:
    return Call(queries, entries, value_size, rows, 1, _on_device(selected, transfer), scale)


def _on_device(chosen: Choice, transfer: Transfer) -> torch.Tensor | None:
    return None if chosen is None else choice_on_device(chosen, transfer).contiguous()


def _run(
    call_of: Callable[..., Call],
    transfer: Transfer,
    rounds: bool,
    *arguments: Any,
    tile: int = 0,
    warps: int = 0,
    stages: int = 0,
) -> torch.Tensor:
    call = call_of(transfer, *arguments)
    kind = product_kind(call.entries, rounds)
    return run(call, kind, transfer, tile, warps, stages)


def _accepts(
    call_of: Callable[..., Call], transfer: Transfer, rounds: bool, *arguments: Any
) -> bool:
    call = call_of(transfer, *arguments)
    near = call.near
    return (
        call.entries.dtype in ((torch.bfloat16,) if rounds else STORED)
        and call.entries.is_contiguous()
        and call.entries.shape[1] * call.stride == call.rows.page_tokens
        and (call.chosen is None or call.chosen.dtype == torch.int32)
        and (
            near is None
            or (
                near.keys.dtype == call.entries.dtype
                and near.keys.is_contiguous()
                and near.keys.shape[1] == near.rows.page_tokens
            )
        )
    )


def _allows(queries: torch.Tensor, *rest: Any, tile: int, warps: int, stages: int) -> bool:
    """Whether such sizes differ from others for these arguments."""
    return tile <= power_of_two(queries.shape[1])
