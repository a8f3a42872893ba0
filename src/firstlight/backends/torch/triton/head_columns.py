# mypy: disable-error-code=no-untyped-def
"""Products of each head with the columns of its rows of a weight: W_h^T x_h.

A program has some columns of one head, whose values are decoded in registers. A scale belongs to a
row of the weight, over which is summed, so that it cannot be multiplied by a sum: values are
float32 with all of their bits. So are activations: this direction of the op rounds none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from firstlight.backends.torch.triton.decoders import first_column, values_of
from firstlight.backends.torch.triton.few_rows import MOST_ROWS
from firstlight.backends.torch.triton.launching import on
from firstlight.backends.torch.triton.operands import Operand
from firstlight.backends.torch.triton.sizes import power_of_two, quotient
from firstlight.backends.torch.triton.tiles import MOST_HEAD_ROWS, tile_rows

MOST_DOWN_ROWS = 512
"""Of activations; of more, PyTorch's library makes up for decoding the weight in memory first."""

# Columns of a tile, of one part; rows of the weight that are decoded at a time.
_COLUMNS, _DECODED = 64, 32


def down_columns(x: torch.Tensor, operand: Operand, first: int, size: int) -> torch.Tensor:
    """float32 [n, heads, columns]: of each head, x times its rows `first` to `first + size`.

    Args:
        x: float32, contiguous, [n, heads, size].
        operand: heads * r rows, of which each head has r.
    """
    count, heads, _ = x.shape
    coding, columns = operand.coding, operand.columns
    out = torch.empty((count, heads, columns), dtype=torch.float32, device=x.device)
    few = count <= MOST_ROWS
    rows = power_of_two(count) if few else tile_rows(count, MOST_HEAD_ROWS)
    chunks, together = coding.chunks(columns), max(1, _COLUMNS // coding.values)
    with on(x.device):
        _down_columns[quotient(chunks, together), heads, quotient(count, rows)](
            x, operand.data, operand.scales, out,
            count, heads, size, columns, chunks, coding.row_blocks(columns),
            operand.outputs // heads, first, operand.first_row, operand.scales_across,
            ROWS=rows, FEW=few, CHUNKS=together, DECODED=_DECODED,
            FORMAT=coding.name, VALUES=coding.values, PARTS=coding.parts,
            DISTANCE=coding.distance, SCALED=coding.scaled != "none", MINIMUM=coding.minimum,
            SCALE_ROWS=operand.scale_rows, SCALE_COLUMNS=operand.scale_columns,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=("count",))
def _down_columns(
    x, weight, scales, out,
    count, heads, size, columns, chunks, row_blocks,
    head_rows, first, first_row, scales_across,
    ROWS: tl.constexpr, FEW: tl.constexpr, CHUNKS: tl.constexpr, DECODED: tl.constexpr,
    FORMAT: tl.constexpr, VALUES: tl.constexpr, PARTS: tl.constexpr, DISTANCE: tl.constexpr,
    SCALED: tl.constexpr, MINIMUM: tl.constexpr,
    SCALE_ROWS: tl.constexpr, SCALE_COLUMNS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    # What lies beyond the last is read again, not beyond the memory, and never stored.
    pair = tl.minimum(row, count - 1).to(tl.int64) * heads + head
    wanted = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)[:, None, None]
    chunk = tl.minimum(wanted, chunks - 1)
    place = tl.arange(0, VALUES)[None, :, None]
    for PART in tl.static_range(PARTS):
        column = first_column(chunk, VALUES, PARTS, DISTANCE) + PART * DISTANCE + place
        column = tl.where(wanted < chunks, column, columns)
        column = tl.reshape(column, (CHUNKS * VALUES, 1))
        # Matrix units take more rows than a few, which each thread sums by itself instead.
        if FEW:
            total = tl.zeros((ROWS, CHUNKS * VALUES, DECODED), dtype=tl.float32)
        else:
            total = tl.zeros((CHUNKS * VALUES, ROWS), dtype=tl.float32)
        for start in range(0, size, DECODED):
            inner = start + tl.arange(0, DECODED)
            there = inner < size
            own = head * head_rows + first + tl.minimum(inner, size - 1)[None, None, :]
            values = values_of(
                weight, own.to(tl.int64) * row_blocks, chunk, place, columns, own + first_row,
                scales, scales_across, PART, FORMAT, VALUES, SCALED, MINIMUM, SCALE_ROWS,
                SCALE_COLUMNS,
            )  # fmt: skip
            values = tl.reshape(values, (CHUNKS * VALUES, DECODED))
            if FEW:
                given = x + (pair[:, None, None] * size + inner[None, None, :])
                given = tl.load(given, mask=there[None, None, :], other=0.0)
                total = tl.fma(given, values[None, :, :], total)
            else:
                given = x + (pair[None, :] * size + inner[:, None])
                given = tl.load(given, mask=there[:, None], other=0.0)
                total = tl.dot(values, given, total, input_precision="ieee")
        if FEW:
            total = tl.trans(tl.sum(total, axis=2))
        to = pair[None, :] * columns + column
        tl.store(out + to, total, mask=(row < count)[None, :] & (column < columns))
