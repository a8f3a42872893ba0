# mypy: disable-error-code=no-untyped-def
"""Norms, and what joins a block's results to the stream, a row at a time.

Between two products a row is read once and written once: what joins sums up the results of a row's
experts, norms the sum and adds it to the stream in one go.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.torch.triton.finishing import narrowed
from firstlight.backends.torch.triton.launching import on
from firstlight.backends.torch.triton.sizes import power_of_two, quotient
from firstlight.ops.parts import Norm

MOST_COLUMNS = 1 << 16
"""Of a row; a program holds it whole."""

# Values of a program that has several short rows, and of a thread of one that has a long one.
_TOGETHER, _OF_A_THREAD = 1024, 16
_LEAST_WARPS, _MOST_WARPS = 4, 16


def _sizes(columns: int) -> tuple[int, int, int]:
    """(columns as a power of two, rows of a program, warps)."""
    wide = power_of_two(columns)
    warps = min(_MOST_WARPS, max(_LEAST_WARPS, wide // (32 * _OF_A_THREAD)))
    return wide, max(1, _TOGETHER // wide), warps


def normed(x: torch.Tensor, norm: Norm, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Root mean square norm over the last axis, rounded to `dtype`; shape of x."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    columns = x.shape[-1]
    if not x.numel():
        return out
    rows = x.numel() // columns
    wide, together, warps = _sizes(columns)
    with on(x.device):
        _normed[(quotient(rows, together),)](
            x, norm.weight, out, rows, columns, norm.epsilon,
            WIDE=wide, ROWS=together, num_warps=warps,
        )  # fmt: skip
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """The op of that name."""
    return normed(x, Norm(x.shape[-1], epsilon, weight))


def takes_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> bool:
    return 0 < x.shape[-1] <= MOST_COLUMNS


def joined(
    stream: torch.Tensor | None,
    results: torch.Tensor,
    each: int = 1,
    shared: torch.Tensor | None = None,
    shared_logits: torch.Tensor | None = None,
    norm: Norm | None = None,
    scale: float = 1.0,
    experts: torch.Tensor | None = None,
) -> torch.Tensor:
    """stream + scale * norm(sum of results + sigmoid(shared_logits) * shared), [n, columns].

    Args:
        stream: float32 [n, columns]; None: nothing, and there is no scale.
        results: float32 [n * each, columns]: `each` neighbours are summed, in their order.
        shared: float32 [n, columns], added last; None: nothing.
        shared_logits: float32 [n, 1]; None: shared is added as it is.
        norm: of the sum; None: not normed.
        experts: int64 [n * each]; a result whose number here is below zero was not computed, and
            is left out. None: all of them were.
    """
    columns = results.shape[1]
    rows = len(results) // each
    out = torch.empty((rows, columns), dtype=torch.float32, device=results.device)
    wide, together, warps = _sizes(columns)
    with on(results.device):
        _joined[(quotient(rows, together),)](
            None if stream is None else stream.contiguous(), results, experts, shared,
            shared_logits,
            None if norm is None else norm.weight, out, rows, columns, each,
            0.0 if norm is None else norm.epsilon, scale,
            NORMED=norm is not None, WIDE=wide, ROWS=together, num_warps=warps,
        )  # fmt: skip
    return out


@triton.jit
def _norm_of(
    value, weight, column, there,
    columns, epsilon,
):  # fmt: skip
    """Of rows that are zero beyond their last column."""
    # Divided by its largest value first: squares could leave the range of float32.
    most = tl.minimum(tl.maximum(tl.max(tl.abs(value), axis=1), 1e-37), 1e38)[:, None]
    small = value / most
    mean = tl.sum(small * small, axis=1)[:, None] / columns.to(tl.float32)
    value = small / tl.sqrt(mean + epsilon / most / most)
    if weight is not None:
        value *= tl.load(weight + column, mask=there, other=0.0)
    return value


@triton.jit(do_not_specialize=("rows",))
def _normed(
    x, weight, out,
    rows, columns, epsilon,
    WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    there = column < columns
    inside = (row < rows) & there
    place = row.to(tl.int64) * columns + column
    value = tl.load(x + place, mask=inside, other=0.0)
    value = _norm_of(value, weight, column, there, columns, epsilon)
    tl.store(out + place, narrowed(value, out.dtype.element_ty == tl.bfloat16), mask=inside)


@triton.jit(do_not_specialize=("rows",))
def _joined(
    stream, results, experts, shared, shared_logits,
    weight, out, rows, columns, each,
    epsilon, scale,
    NORMED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    there = column < columns
    inside = (row < rows) & there
    place = row.to(tl.int64) * columns + column
    first = row.to(tl.int64) * each * columns + column
    total = tl.zeros((ROWS, WIDE), dtype=tl.float32)
    for number in range(each):
        computed = inside
        if experts is not None:
            expert = tl.load(experts + row.to(tl.int64) * each + number, mask=row < rows, other=-1)
            computed = inside & (expert >= 0)
        total += tl.load(results + first + number * columns, mask=computed, other=0.0)
    if shared is not None:
        added = tl.load(shared + place, mask=inside, other=0.0)
        if shared_logits is not None:
            added *= tl.sigmoid(tl.load(shared_logits + row, mask=row < rows, other=0.0))
        total += added
    if NORMED:
        total = _norm_of(total, weight, column, there, columns, epsilon)
    if stream is not None:
        total = tl.load(stream + place, mask=inside, other=0.0) + scale * total
    tl.store(out + place, total, mask=inside)
