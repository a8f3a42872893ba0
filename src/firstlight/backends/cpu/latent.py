"""The cpu backend's kernels of latent attention, made of the extension's products and attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_pages, are_rows
from firstlight.backends.cpu.attention import attend
from firstlight.backends.cpu.matrices import matrix_in_place
from firstlight.backends.cpu.packed import ALIGNMENT, PANEL_ROWS, PackedMatrix, packed_bytes
from firstlight.backends.cpu.products import fixed_point
from firstlight.formats.base import BlockScales, Floats, Weight
from firstlight.formats.plain import F32
from firstlight.ops.attention import state_format
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import bfloat16_for_bfloat16

_KEPT = "_cpu_heads"


@dataclass(frozen=True)
class HeadPart:
    """Which rows of each head, as in `head_linear`."""

    heads: int
    first: int
    size: int
    transposed: bool


class LatentKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Args:
        native: the extension's kernels.
        exact: round neither queries nor the softmax's weights, and leave weights where they lie.
    """

    def __init__(self, native: _native.Kernels, exact: bool = False) -> None:
        self._native = native
        self._exact = exact
        self._bfloat16 = native.multiplies_bfloat16 and not exact

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        rounding = Kernel(
            "latent_attention",
            "bfloat16",
            self.latent_attention_bfloat16,
            self.accepts_latent_attention_bfloat16,
            rounding=bfloat16_for_bfloat16,
        )
        packed = Kernel(
            "head_linear",
            "packed",
            self.head_linear,
            self.accepts_head_linear_packed,
            rounding=fixed_point,
        )
        return (
            *((rounding,) if self._bfloat16 else ()),
            Kernel(
                "latent_attention", "paged", self.latent_attention, self.accepts_latent_attention
            ),
            *(() if self._exact else (packed,)),
            Kernel("head_linear", "stored", self.head_linear, self.accepts_head_linear),
        )

    def accepts_head_linear_packed(
        self, x: Floats, weight: Weight | PackedMatrix, first: int, size: int, transposed: bool
    ) -> bool:
        """Heads whose rows are whole panels, in the direction in which they lie."""
        return (
            isinstance(weight, PackedMatrix)
            and _are_heads(x)
            and in_panels(weight, HeadPart(x.shape[1], first, size, transposed))
        )

    def accepts_head_linear(
        self, x: Floats, weight: Weight | PackedMatrix, first: int, size: int, transposed: bool
    ) -> bool:
        """All others; which of the two kernels serves is the weight's matter alone."""
        return _are_heads(x) and not self.accepts_head_linear_packed(
            x, weight, first, size, transposed
        )

    def head_linear(
        self, x: Floats, weight: Weight | PackedMatrix, first: int, size: int, transposed: bool
    ) -> Floats:
        """A product for each head; what it multiplies by is laid out once, and kept."""
        count, heads, _ = x.shape
        matrices = matrices_of_heads(weight, HeadPart(heads, first, size, transposed))
        # Each head's rows side by side, as products take and give them.
        inputs = np.ascontiguousarray(x.transpose(1, 0, 2))
        outputs = np.empty((heads, count, matrices[0].rows), np.float32)
        self._native.linear_each(inputs, matrices, outputs)
        return np.ascontiguousarray(outputs.transpose(1, 0, 2))

    def accepts_latent_attention(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> bool:
        return are_floats(queries) and are_pages(entries) and are_rows(rows)

    def latent_attention(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> Floats:
        """Paged attention with one key-value head, whose values are the whole entries: they are
        read anyway, and what lies behind `value_size` is left out of the result."""
        return self._attend(queries, entries, value_size, rows, scale, False)

    def accepts_latent_attention_bfloat16(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> bool:
        return state_format(entries, entries).name == "bf16" and self.accepts_latent_attention(
            queries, entries, value_size, rows, scale
        )

    def latent_attention_bfloat16(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        scale: float,
    ) -> Floats:
        """With queries and the softmax's weights rounded to bfloat16, as the entries are."""
        return self._attend(queries, entries, value_size, rows, scale, True)

    def _attend(
        self,
        queries: Floats,
        entries: NDArray[Any],
        value_size: int,
        rows: PagedRows,
        scale: float,
        round_to_bfloat16: bool,
    ) -> Floats:
        shared = entries[:, :, None]
        out = attend(
            self._native, queries, shared, shared, rows, scale, round_to_bfloat16=round_to_bfloat16
        )
        return np.ascontiguousarray(out[..., :value_size])


def _are_heads(x: Floats) -> bool:
    return are_floats(x) and x.ndim == 3 and x.shape[1] > 0 and x.shape[0] > 0


def matrices_of_heads(weight: Weight | PackedMatrix, part: HeadPart) -> tuple[_native.Matrix, ...]:
    """The extension's matrix of each head, kept among the weight's own attributes."""
    kept = weight.__dict__
    made = cast("dict[HeadPart, tuple[_native.Matrix, ...]]", kept.setdefault(_KEPT, {}))
    if part not in made:
        if isinstance(weight, PackedMatrix) and in_panels(weight, part):
            made[part] = tuple(_panels(weight, part, head) for head in range(part.heads))
        else:
            stored = weight.unpack() if isinstance(weight, PackedMatrix) else weight
            made[part] = tuple(_matrix(stored, part, head) for head in range(part.heads))
    return made[part]


def in_panels(weight: PackedMatrix, part: HeadPart) -> bool:
    """Whether each head's rows are whole panels, at addresses that panels may have."""
    places = (weight.rows // part.heads, part.first, part.size)
    if part.transposed or any(place % PANEL_ROWS for place in places):
        return False
    return _panel_bytes(weight) % ALIGNMENT == 0


def _panel_bytes(weight: PackedMatrix) -> int:
    size = packed_bytes(weight.format, PANEL_ROWS, weight.columns)
    assert size is not None
    return size


def _panels(weight: PackedMatrix, part: HeadPart, head: int) -> _native.Matrix:
    """A head's rows where they lie."""
    panel = _panel_bytes(weight)
    begin = (head * (weight.rows // part.heads) + part.first) // PANEL_ROWS * panel
    data = weight.data[begin : begin + part.size // PANEL_ROWS * panel]
    return _native.Matrix(weight.format.name, data, part.size, weight.columns, True)


def _matrix(weight: Weight, part: HeadPart, head: int) -> _native.Matrix:
    """Where the file lies, if the extension can read that; else a copy, in float32 unless single
    values can be moved as they are."""
    start = head * (weight.rows // part.heads) + part.first
    rows = weight.row_slice(start, start + part.size)
    if part.transposed:
        moved = _transposed(rows)
        made = None if moved is None else matrix_in_place(moved)
    else:
        made = matrix_in_place(replace(rows, data=np.ascontiguousarray(rows.data)))
    if made is not None:
        return made
    values = rows.decode()
    if part.transposed:
        values = values.T
    data = np.array(values, np.float32, order="C").view(np.uint8)
    return _native.Matrix(F32.name, data, values.shape[0], values.shape[1], False)


def _transposed(weight: Weight) -> Weight | None:
    """The same values with rows for columns; None where single ones, or their scales, cannot be
    moved as they are."""
    format, scales = weight.format, weight.scales
    if format.block_values != 1 or not (scales is None or isinstance(scales, BlockScales)):
        return None
    if scales is not None:
        first, rest = divmod(scales.first_row, scales.rows)
        if rest:
            return None
        blocks = scales.values[first : first + -(-weight.rows // scales.rows)]
        scales = BlockScales(np.ascontiguousarray(blocks.T), scales.columns, scales.rows)
    values = weight.data.reshape(weight.rows, -1, format.block_bytes).swapaxes(0, 1)
    data = np.ascontiguousarray(values).reshape(weight.columns, -1)
    return Weight(format, (weight.columns, weight.rows), data, weight.name, scales)
