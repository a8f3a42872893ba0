# mypy: disable-error-code=no-untyped-def
"""Products of a few rows: every value of a weight is read once, decoded and multiplied.

What limits them is how fast weights are read. So a program has a few outputs and goes through the
whole of their rows, all of its threads side by side; sums stay with the thread until the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.kernel import Parameter
from firstlight.backends.torch.triton.decoders import first_column, values_of
from firstlight.backends.torch.triton.expert_weights import part_of, weight_of
from firstlight.backends.torch.triton.finishing import finished, narrowed, to_bfloat16
from firstlight.backends.torch.triton.launching import interpreted, on
from firstlight.backends.torch.triton.request import Request
from firstlight.backends.torch.triton.sizes import power_of_two, quotient

MOST_ROWS = 4
"""Of activations; above, tiles are faster: they need not be read by every program."""

PARAMETERS = (
    Parameter("outputs", (4, 2, 8, 16), 4),
    Parameter("unrolled", (2, 1, 4), 2),
)

MOST_SUMS = 16
"""Outputs times rows of a program: so many sums of each thread fit into registers."""

# With other numbers of threads sums would have another order, which parameters must not change.
_WARPS = 4
_THREADS = 32 * _WARPS


def few_rows(request: Request, outputs: int = 4, unrolled: int = 2) -> torch.Tensor:
    """The product that is asked for, of one row for each pair or of at most MOST_ROWS in all."""
    operand, x = request.operand, request.x
    coding, scales = operand.coding, operand.scales
    out = request.new_result()
    count = len(out)
    rows = 1 if request.grouped else power_of_two(count)
    other = request.other
    grid = (quotient(operand.outputs, outputs), count if request.grouped else 1)
    with on(x.device):
        _few_rows[grid](
            x, operand.data, None if other is None else other.data,
            scales, None if other is None else other.scales,
            operand.bias, None if other is None else other.bias,
            request.factors, request.residual, request.experts, out,
            count, operand.outputs, operand.columns, coding.chunks(operand.columns),
            coding.row_blocks(operand.columns), operand.first_row, operand.scales_across,
            operand.scales_each, request.rows_each, *request.numbers,
            ROWS=rows, OUTPUTS=outputs,
            CHUNKS=max(1, _THREADS * coding.together // coding.values), UNROLLED=unrolled,
            ROUNDED=_rounded(request), GATING=request.gating,
            FORMAT=coding.name, VALUES=coding.values, PARTS=coding.parts,
            DISTANCE=coding.distance, SCALED=coding.scaled != "none", MINIMUM=coding.minimum,
            SCALE_ROWS=operand.scale_rows, SCALE_COLUMNS=operand.scale_columns,
            num_warps=_WARPS,
        )  # fmt: skip
    return out


def _rounded(request: Request) -> str:
    """How activations are rounded to bfloat16 as they are read; empty: they are not."""
    if not request.rounds:
        return ""
    return "by hand" if interpreted() else "by the chip"


@triton.jit(do_not_specialize=("count",))
def _few_rows(
    x, weight, other, scales, other_scales, bias, other_bias,
    factors, residual, experts, out,
    count, outputs, columns, chunks, row_blocks, first_row,
    scales_across, scales_each, rows_each,
    residual_scale, limit, slope, offset,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, CHUNKS: tl.constexpr, UNROLLED: tl.constexpr,
    ROUNDED: tl.constexpr, GATING: tl.constexpr, FORMAT: tl.constexpr, VALUES: tl.constexpr,
    PARTS: tl.constexpr, DISTANCE: tl.constexpr, SCALED: tl.constexpr, MINIMUM: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    kept = output < outputs
    # What lies beyond the last is read again, not beyond the memory, and never stored.
    output = tl.minimum(output, outputs - 1)
    row = tl.arange(0, ROWS)
    if experts is not None:
        expert = tl.load(experts + pair)
        if expert < 0:
            return
        weight = weight_of(weight, expert, FORMAT)
        other = weight_of(other, expert, FORMAT)
        scales = part_of(scales, expert, scales_each)
        other_scales = part_of(other_scales, expert, scales_each)
        bias = part_of(bias, expert, outputs)
        other_bias = part_of(other_bias, expert, outputs)
        given_row = row + pair // rows_each
        row += pair
    else:
        given_row = tl.minimum(row, count - 1)
    own = output[:, None, None]
    first = own.to(tl.int64) * row_blocks
    place = tl.arange(0, VALUES)[None, None, :]
    given_from = given_row.to(tl.int64)[:, None, None, None] * columns
    total = tl.zeros((ROWS, OUTPUTS, CHUNKS, VALUES), dtype=tl.float32)
    if GATING != "":
        other_total = tl.zeros((ROWS, OUTPUTS, CHUNKS, VALUES), dtype=tl.float32)
    for start in range(0, chunks, CHUNKS * UNROLLED):
        for step in tl.static_range(UNROLLED):
            chunk = start + step * CHUNKS + tl.arange(0, CHUNKS)[None, :, None]
            inside = chunk < chunks
            chunk = tl.minimum(chunk, chunks - 1)
            for PART in tl.static_range(PARTS):
                column = first_column(chunk, VALUES, PARTS, DISTANCE) + PART * DISTANCE + place
                there = (inside & (column < columns))[None, :, :, :]
                given = tl.load(x + (given_from + column[None, :, :, :]), mask=there, other=0.0)
                if ROUNDED == "by the chip":
                    given = given.to(tl.bfloat16)
                elif ROUNDED == "by hand":
                    given = to_bfloat16(given)
                given = given.to(tl.float32)
                values = values_of(
                    weight, first, chunk, place, columns, own + first_row, scales, scales_across,
                    PART, FORMAT, VALUES, SCALED, MINIMUM, SCALE_ROWS, SCALE_COLUMNS,
                )  # fmt: skip
                total = tl.fma(given, values[None, :, :, :], total)
                if GATING != "":
                    values = values_of(
                        other, first, chunk, place, columns, own + first_row, other_scales,
                        scales_across, PART, FORMAT, VALUES, SCALED, MINIMUM, SCALE_ROWS,
                        SCALE_COLUMNS,
                    )  # fmt: skip
                    other_total = tl.fma(given, values[None, :, :, :], other_total)
    SUMMED: tl.constexpr = CHUNKS * VALUES
    total = tl.sum(tl.reshape(total, (ROWS, OUTPUTS, SUMMED)), axis=2)
    if GATING != "":
        other_total = tl.sum(tl.reshape(other_total, (ROWS, OUTPUTS, SUMMED)), axis=2)
    else:
        other_total = total
    to = row.to(tl.int64)[:, None] * outputs + output[None, :]
    stored = kept[None, :] & (row < count)[:, None]
    total = finished(
        total, other_total, bias, other_bias, factors, residual, output[None, :], row[:, None],
        to, stored, residual_scale, limit, slope, offset, GATING,
    )  # fmt: skip
    tl.store(out + to, narrowed(total, out.dtype.element_ty == tl.bfloat16), mask=stored)
