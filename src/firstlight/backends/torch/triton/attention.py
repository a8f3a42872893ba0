"""Attention over pages where they lie: one `Kernel` for each op and rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from firstlight.backends.kernel import Kernel
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.attention_launch import PARAMETERS, Call, run
from firstlight.backends.torch.triton.attention_plan import ProductKind
from firstlight.backends.torch.triton.query_tiles import FEW_ROWS
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16, no_rounding

STORED = (torch.float32, torch.bfloat16)


def attention_kernels(transfer: Transfer, exact: bool) -> tuple[Kernel, ...]:
    """The kernels of one device, in order of preference within an op.

    Args:
        exact: round no queries and no weights of the softmax.
    """
    return tuple(_kernels(transfer, exact))


def _kernels(transfer: Transfer, exact: bool) -> Iterator[Kernel]:
    for op, call_of in (
        ("attention", _attention),
        ("attention_with_sinks", _attention_with_sinks),
        ("latent_attention", _latent_attention),
    ):
        # `attention_with_sinks` is defined without a rounding.
        for rounds in (False,) if exact or op == "attention_with_sinks" else (True, False):
            yield Kernel(
                op,
                "paged_bfloat16" if rounds else "paged",
                partial(_run, call_of, transfer, rounds),
                partial(_accepts, call_of, rounds),
                bfloat16_for_bfloat16 if rounds else no_rounding,
                PARAMETERS,
                partial(_allows, call_of),
            )


def _attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: PagedRows,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Call:
    return Call(queries, keys, values, values.shape[3], rows, scale, window, soft_cap)


def _attention_with_sinks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: PagedRows,
    scale: float,
    window: int | None,
    sinks: torch.Tensor,
) -> Call:
    return Call(queries, keys, values, values.shape[3], rows, scale, window, sinks=sinks)


def _latent_attention(
    queries: torch.Tensor, entries: torch.Tensor, value_size: int, rows: PagedRows, scale: float
) -> Call:
    return Call(queries, entries.unsqueeze(2), None, value_size, rows, scale)


def _run(
    call_of: Callable[..., Call],
    transfer: Transfer,
    rounds: bool,
    *arguments: Any,
    tile: int = 0,
    warps: int = 0,
    stages: int = 0,
) -> torch.Tensor:
    call = call_of(*arguments)
    return run(call, product_kind(call.keys, rounds), transfer, tile, warps, stages)


def product_kind(stream: torch.Tensor, rounds: bool) -> ProductKind:
    """How entries of a stream are multiplied."""
    if rounds:
        return "bfloat16"
    return "parts" if stream.dtype == torch.bfloat16 else "float32"


def _accepts(call_of: Callable[..., Call], rounds: bool, *arguments: Any) -> bool:
    call = call_of(*arguments)
    values = call.keys if call.values is None else call.values
    return (
        call.keys.dtype == values.dtype
        and call.keys.dtype in ((torch.bfloat16,) if rounds else STORED)
        and call.keys.shape[1] == values.shape[1] == call.rows.page_tokens
        and call.keys.is_contiguous()
        and values.is_contiguous()
    )


def _allows(
    call_of: Callable[..., Call], *arguments: Any, tile: int, warps: int, stages: int
) -> bool:
    """Whether such sizes differ from others for these arguments."""
    rows = call_of(*arguments).rows
    longest = max((rows.row_starts[1:] - rows.row_starts[:-1]).tolist(), default=0)
    return not tile or longest > FEW_ROWS
