# mypy: disable-error-code=no-untyped-def
"""Products of many rows: tiles of a weight, decoded in registers, times tiles of activations.

Matrix units multiply whole codes, which bfloat16 holds exactly, by activations in bfloat16; sums of
a chunk are float32, and are multiplied by its scale as they are added to the result. So a value of
the weight is nowhere rounded. Where rows are few, a weight's columns are split among programs, so
that there are enough to occupy a chip; their sums are added in the order of the columns.

With experts a tile has rows of one expert; which is found out on the device (grouping.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.kernel import Parameter
from firstlight.backends.torch.triton.decoders import codes_of, first_column, minima_of, scales_of
from firstlight.backends.torch.triton.expert_weights import part_of, weight_of
from firstlight.backends.torch.triton.finishing import finished, narrowed
from firstlight.backends.torch.triton.grouping import Groups
from firstlight.backends.torch.triton.launching import interpreted, on
from firstlight.backends.torch.triton.operands import Operand
from firstlight.backends.torch.triton.request import Request
from firstlight.backends.torch.triton.sizes import power_of_two, quotient

LEAST_TILE = 16
"""Rows and outputs that matrix units take at least."""

MOST_GATED_ROWS = 64
"""Rows of a tile of a gated product: the sums of both of its products must fit into registers."""

MOST_HEAD_ROWS = 64
"""Rows of a tile of one head's product, of which there are as many at once as heads."""

PARAMETERS = (
    Parameter("outputs", (64, 128, 32), 64),
    Parameter("rows", (128, 64, 32, 16, 256), 128),
    Parameter("warps", (4, 8), 4),
    Parameter("stages", (3, 2), 3),
)

# Up to so many rows a weight is split, for so many programs of so many outputs each, into parts of
# so many columns at least; and sums that go through memory are to be few beside the weight.
_SPLIT_ROWS, _PROGRAMS, _SPLIT_OUTPUTS, _SPLIT_COLUMNS = 64, 1024, 64, 256
_BYTES_OF_A_SUM = 8
_COMBINED = 1024
"""Values of the result that a program adds up."""


def splits_of(operand: Operand, count: int) -> int:
    """Parts into which a weight's columns are split for so many rows."""
    if count > _SPLIT_ROWS:
        return 1
    row_bytes = operand.data.nbytes // operand.outputs
    return max(
        1,
        min(
            _PROGRAMS * _SPLIT_OUTPUTS // operand.outputs,
            operand.columns // _SPLIT_COLUMNS,
            row_bytes // (_BYTES_OF_A_SUM * count),
        ),
    )


def tile_rows(count: int, most: int) -> int:
    """Rows of a tile for so many in all."""
    return max(LEAST_TILE, min(most, power_of_two(count)))


def tiles(
    request: Request, groups: Groups | None = None,
    outputs: int = 64, rows: int = 128, warps: int = 4, stages: int = 3,
) -> torch.Tensor:  # fmt: skip
    """The product that is asked for; with experts, of the groups' rows."""
    operand, other, x = request.operand, request.other, request.x
    coding = operand.coding
    out = request.new_result()
    count = len(out)
    splits = 1 if groups is not None or other is not None else splits_of(operand, count)
    if groups is not None:
        rows, across = groups.rows, groups.tiles
    else:
        rows = tile_rows(count, rows if other is None else min(rows, MOST_GATED_ROWS))
        across = quotient(count, rows)
    if splits > 1:
        shape = (splits, count, operand.outputs)
        into = torch.empty(shape, dtype=torch.float32, device=x.device)
    else:
        into = out
    chunks = coding.chunks(operand.columns)
    whole = splits == 1
    with on(x.device):
        _tiles[across, quotient(operand.outputs, outputs), splits](
            x, operand.data, None if other is None else other.data,
            operand.scales, None if other is None else other.scales,
            operand.bias if whole else None, None if other is None else other.bias,
            request.factors if whole else None, request.residual if whole else None,
            None if groups is None else groups.experts,
            None if groups is None else groups.starts,
            None if groups is None else groups.first_tiles,
            None if groups is None else groups.order, into,
            count, operand.outputs, operand.columns, chunks, quotient(chunks, splits),
            coding.row_blocks(operand.columns), operand.first_row, operand.scales_across,
            operand.scales_each, request.rows_each, *request.numbers,
            ROWS=rows, OUTPUTS=outputs, GATING=request.gating, DOT=dot_type(x),
            FORMAT=coding.name, VALUES=coding.values, PARTS=coding.parts,
            DISTANCE=coding.distance, SCALED=coding.scaled, SHARES_SCALE=coding.shares_scale,
            MINIMUM=coding.minimum, WHOLE=not coding.block_chunks,
            SCALE_ROWS=operand.scale_rows, SCALE_COLUMNS=operand.scale_columns,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        if splits > 1:
            _combine[(quotient(out.numel(), _COMBINED),)](
                into, operand.bias, request.factors, request.residual, out,
                out.numel(), operand.outputs, splits, request.residual_scale, SIZE=_COMBINED,
            )  # fmt: skip
    return out


def dot_type(x: torch.Tensor) -> tl.dtype:
    """What is multiplied: what x is, except that the interpreter cannot multiply bfloat16."""
    return tl.bfloat16 if x.dtype == torch.bfloat16 and not interpreted() else tl.float32


@triton.jit
def _add_part(
    total, weight, first, chunk, place,
    columns, row, scales, scales_across,
    given, DOT: tl.constexpr, PART: tl.constexpr,
    FORMAT: tl.constexpr, VALUES: tl.constexpr, SCALED: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """total plus the product of a part's values as far as bfloat16 holds them, and of `given`."""
    codes = codes_of(weight, first, chunk, place, columns, PART, FORMAT, VALUES)
    if SCALED == "folded":
        codes *= scales_of(
            weight, first, chunk, row, scales, scales_across,
            PART, FORMAT, VALUES, SCALE_ROWS, SCALE_COLUMNS,
        )  # fmt: skip
    return tl.dot(codes.to(DOT), given, total, input_precision="ieee")


@triton.jit
def _add_chunk(
    total, weight, first, chunk, columns,
    row, scales, scales_across, x,
    given_from,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DOT: tl.constexpr, FORMAT: tl.constexpr,
    VALUES: tl.constexpr, PARTS: tl.constexpr, DISTANCE: tl.constexpr, SCALED: tl.constexpr,
    SHARES_SCALE: tl.constexpr, MINIMUM: tl.constexpr, WHOLE: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """total [OUTPUTS, ROWS] plus the product of one chunk."""
    place = tl.arange(0, VALUES)
    if SCALED == "each":
        part_total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    for PART in tl.static_range(PARTS):
        column = first_column(chunk, VALUES, PARTS, DISTANCE) + PART * DISTANCE + place[:, None]
        if WHOLE:
            given = tl.load(x + (given_from + column), mask=column < columns, other=0.0)
        else:
            given = tl.load(x + (given_from + column))
        given = given.to(DOT)
        if SCALED == "each":
            part_total = _add_part(
                part_total, weight, first, chunk, place[None, :], columns, row, scales,
                scales_across, given, DOT, PART, FORMAT, VALUES, SCALED, SCALE_ROWS, SCALE_COLUMNS,
            )  # fmt: skip
            if MINIMUM:
                minima = minima_of(weight, first, chunk, PART, FORMAT)
                sums = tl.sum(given.to(tl.float32), axis=0)[None, :]
                total = tl.fma(minima, sums, total)
            if PART == PARTS - 1 or not SHARES_SCALE:
                scale = scales_of(
                    weight, first, chunk, row, scales, scales_across,
                    PART, FORMAT, VALUES, SCALE_ROWS, SCALE_COLUMNS,
                )  # fmt: skip
                total = tl.fma(part_total, scale, total)
                part_total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
        else:
            total = _add_part(
                total, weight, first, chunk, place[None, :], columns, row, scales,
                scales_across, given, DOT, PART, FORMAT, VALUES, SCALED, SCALE_ROWS, SCALE_COLUMNS,
            )  # fmt: skip
    return total


@triton.jit(do_not_specialize=("count",))
def _tiles(
    x, weight, other, scales, other_scales,
    bias, other_bias, factors, residual,
    experts, starts, first_tiles, order,
    out,
    count, outputs, columns, chunks,
    split_chunks, row_blocks, first_row,
    scales_across, scales_each, rows_each,
    residual_scale, limit, slope, offset,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, GATING: tl.constexpr, DOT: tl.constexpr,
    FORMAT: tl.constexpr, VALUES: tl.constexpr, PARTS: tl.constexpr, DISTANCE: tl.constexpr,
    SCALED: tl.constexpr, SHARES_SCALE: tl.constexpr, MINIMUM: tl.constexpr, WHOLE: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(2)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    kept = output < outputs
    # What lies beyond the last is read again, not beyond the memory, and never stored.
    output = tl.minimum(output, outputs - 1)
    if experts is not None:
        expert = tl.load(experts + tile)
        if expert < 0:
            return
        weight = weight_of(weight, expert, FORMAT)
        other = weight_of(other, expert, FORMAT)
        scales = part_of(scales, expert, scales_each)
        other_scales = part_of(other_scales, expert, scales_each)
        bias = part_of(bias, expert, outputs)
        other_bias = part_of(other_bias, expert, outputs)
        start = tl.load(starts + expert) + (tile - tl.load(first_tiles + expert)) * ROWS
        stop = tl.load(starts + expert + 1)
        position = start + tl.arange(0, ROWS)
        filled = position < stop
        row = tl.load(order + tl.minimum(position, stop - 1))
        given_row = row // rows_each
    else:
        row = tile * ROWS + tl.arange(0, ROWS)
        filled = row < count
        row = tl.minimum(row, count - 1)
        given_row = row
    own = output[:, None]
    first = own.to(tl.int64) * row_blocks
    given_from = given_row.to(tl.int64)[None, :] * columns
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    other_total = total
    last = tl.minimum((split + 1) * split_chunks, chunks)
    for chunk in range(split * split_chunks, last):
        total = _add_chunk(
            total, weight, first, chunk, columns, own + first_row, scales, scales_across,
            x, given_from, ROWS, OUTPUTS, DOT, FORMAT, VALUES, PARTS, DISTANCE, SCALED,
            SHARES_SCALE, MINIMUM, WHOLE, SCALE_ROWS, SCALE_COLUMNS,
        )  # fmt: skip
        if GATING != "":
            other_total = _add_chunk(
                other_total, other, first, chunk, columns, own + first_row, other_scales,
                scales_across, x, given_from, ROWS, OUTPUTS, DOT, FORMAT, VALUES, PARTS, DISTANCE,
                SCALED, SHARES_SCALE, MINIMUM, WHOLE, SCALE_ROWS, SCALE_COLUMNS,
            )  # fmt: skip
    to = row.to(tl.int64)[None, :] * outputs + own
    stored = kept[:, None] & filled[None, :]
    total = finished(
        total, other_total, bias, other_bias, factors, residual, own, row[None, :], to, stored,
        residual_scale, limit, slope, offset, GATING,
    )  # fmt: skip
    into = out + split.to(tl.int64) * count * outputs
    tl.store(into + to, narrowed(total, out.dtype.element_ty == tl.bfloat16), mask=stored)


@triton.jit
def _combine(
    parts, bias, factors, residual, out,
    size, outputs, splits, residual_scale, SIZE: tl.constexpr,
):  # fmt: skip
    """The sum of the splits of a product, [splits, n, outputs], in their order."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < size
    total = tl.load(parts + place, mask=inside, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts + split * size.to(tl.int64) + place, mask=inside, other=0.0)
    within = tl.where(inside, place, 0)
    total = finished(
        total, total, bias, None, factors, residual, within % outputs, within // outputs,
        place, inside, residual_scale, 0.0, 0.0, 0.0, "",
    )  # fmt: skip
    tl.store(out + place, narrowed(total, out.dtype.element_ty == tl.bfloat16), mask=inside)
