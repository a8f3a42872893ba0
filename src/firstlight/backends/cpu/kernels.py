"""The cpu backend's kernels: which arguments each takes, and how it is called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel, Parameter
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import NO_WINDOW, are_floats, are_integers, are_pages, are_rows
from firstlight.backends.cpu.matrices import matrix_of, stored_matrix
from firstlight.backends.cpu.packed import PackedMatrix, packed_bytes
from firstlight.backends.cpu.tuned_attention import ATTENTION_PARAMETERS, allows_attention
from firstlight.backends.cpu.tuned_matrices import (
    LINEAR_PARAMETERS,
    allows_linear,
    tune_for,
)
from firstlight.formats.base import Floats, Format, Weight
from firstlight.formats.float8 import F8_E4M3
from firstlight.ops import elementwise
from firstlight.ops.attention import state_format
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import ClampedSwish
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding, bfloat16_for_bfloat16, bfloat16_for_float8

_Packed = Weight | PackedMatrix

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")

# Weights in a format that the kernels do not know are decoded this many values at a time.
_DECODED_VALUES = 1 << 20

# Below so many values NumPy adds two arrays in less time than a call of the extension takes. That
# is a guess about all machines; the tuner asks this one.
_WORTH_A_CALL = 1 << 13
_THROUGH = Parameter("through", ("size", "extension", "numpy"), "size")


def _numpy_serves(x: Floats, through: str) -> bool:
    return through == "numpy" or (through == "size" and x.size < _WORTH_A_CALL)


def _matrix(weight: _Packed) -> _native.Matrix:
    matrix = matrix_of(weight)
    if matrix is None:
        raise TypeError(f"the kernels cannot read {weight.format.name} as it lies in memory")
    return matrix


def fixed_point(format: Format) -> Rounding:
    """How products with packed weights of a format round their activations."""
    return "none" if packed_bytes(format, 0, 0) is None else "mixed16"


class CpuKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Shapes, token ids and pages are checked by the extension: ValueError, IndexError or TypeError
    where they are wrong. `accepts_...` leaves to the definition what a kernel was not made for.

    Args:
        native: the extension's kernels.
        packed: whether weights may come in panels. Products with those round their activations.
        exact: round activations nowhere else either.
    """

    def __init__(self, native: _native.Kernels, packed: bool, exact: bool = False) -> None:
        self._native = native
        self._packed = packed
        self._bfloat16 = native.multiplies_bfloat16 and not exact
        self._float8 = native.multiplies_float8 and not exact

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        return (
            *self._of_packed_weights(),
            *self._of_bfloat16(),
            *self._of_float8(),
            *self._of_stored_weights_and_state(),
        )

    def rounding(self, format: Format) -> Rounding:
        """How the product that is preferred for weights of a format rounds its activations."""
        if self._bfloat16 and format.name == "bf16":
            return "bfloat16"
        if self._float8 and format.name == F8_E4M3.name:
            return "bfloat16"
        return fixed_point(format) if self._packed else "none"

    def _of_packed_weights(self) -> tuple[Kernel, ...]:
        if not self._packed:
            return ()
        return (
            Kernel(
                "linear",
                "packed",
                self.linear,
                self.accepts_linear_packed,
                rounding=fixed_point,
                parameters=LINEAR_PARAMETERS,
                allows=allows_linear,
            ),
            Kernel("embed", "packed", self.embed, self.accepts_embed_packed),
        )

    def _of_bfloat16(self) -> tuple[Kernel, ...]:
        if not self._bfloat16:
            return ()
        return (
            Kernel(
                "attention",
                "bfloat16",
                self.attention_bfloat16,
                self.accepts_attention_bfloat16,
                rounding=bfloat16_for_bfloat16,
                parameters=ATTENTION_PARAMETERS,
                allows=allows_attention,
            ),
            Kernel(
                "linear",
                "bfloat16",
                self.linear_bfloat16,
                self.accepts_linear_bfloat16,
                rounding=bfloat16_for_bfloat16,
                parameters=LINEAR_PARAMETERS[:2],
                allows=allows_linear,
            ),
        )

    def _of_float8(self) -> tuple[Kernel, ...]:
        if not self._float8:
            return ()
        return (
            Kernel(
                "linear",
                "float8",
                self.linear_bfloat16,
                self.accepts_linear_float8,
                rounding=bfloat16_for_float8,
                parameters=LINEAR_PARAMETERS,
                allows=allows_linear,
            ),
        )

    def _of_stored_weights_and_state(self) -> tuple[Kernel, ...]:
        return (
            Kernel(
                "linear",
                "stored",
                self.linear,
                self.accepts_linear,
                parameters=LINEAR_PARAMETERS,
                allows=allows_linear,
            ),
            Kernel("linear", "decoded", self.linear_decoded, self.accepts_linear_decoded),
            Kernel("embed", "stored", self.embed, self.accepts_embed),
            Kernel("rms_norm", "rows", self.rms_norm, self.accepts_rms_norm),
            Kernel("rotary", "rows", self.rotary, self.accepts_rotary),
            Kernel("stream_write", "paged", self.stream_write, self.accepts_stream_write),
            Kernel(
                "attention",
                "paged",
                self.attention,
                self.accepts_attention,
                parameters=ATTENTION_PARAMETERS,
                allows=allows_attention,
            ),
            Kernel("gate", "vector", self.gate, self.accepts_gate),
            Kernel("clamped_gate", "vector", self.clamped_gate, self.accepts_clamped_gate),
            Kernel(
                "add",
                "vector",
                self.add,
                self.accepts_add,
                parameters=(_THROUGH,),
            ),
            Kernel(
                "scale",
                "vector",
                self.scale,
                self.accepts_scale,
                parameters=(_THROUGH,),
            ),
            Kernel("soft_cap", "vector", self.soft_cap, self.accepts_soft_cap),
            Kernel("take_rows", "rows", self.take_rows, self.accepts_take_rows),
        )

    # Products with weights ---------------------------------------------------------------

    def accepts_linear(self, x: Floats, weight: _Packed, bias: Floats | None = None) -> bool:
        return (
            isinstance(weight, Weight)
            and stored_matrix(weight) is not None
            and are_floats(x)
            and (bias is None or are_floats(bias))
        )

    def linear(
        self, x: Floats, weight: _Packed, bias: Floats | None = None, **tuning: int
    ) -> Floats:
        """With a tuning, the weight's handle keeps it for as many rows; else its own is used."""
        return self._product(x, weight, bias, tuning, round_to_bfloat16=False)

    def accepts_linear_bfloat16(
        self, x: Floats, weight: _Packed, bias: Floats | None = None
    ) -> bool:
        return weight.format.name == "bf16" and self.accepts_linear(x, weight, bias)

    def accepts_linear_float8(self, x: Floats, weight: _Packed, bias: Floats | None = None) -> bool:
        return weight.format.name == F8_E4M3.name and self.accepts_linear(x, weight, bias)

    def linear_bfloat16(
        self, x: Floats, weight: _Packed, bias: Floats | None = None, **tuning: int
    ) -> Floats:
        """With activations rounded to bfloat16, which holds the weights' values, or their codes'.
        Tunings as in `linear`."""
        return self._product(x, weight, bias, tuning, round_to_bfloat16=True)

    def _product(
        self,
        x: Floats,
        weight: _Packed,
        bias: Floats | None,
        tuning: dict[str, int],
        *,
        round_to_bfloat16: bool,
    ) -> Floats:
        matrix = _matrix(weight)
        if tuning:
            tune_for(matrix, len(x), tuning)
        out = np.empty((len(x), matrix.rows), np.float32)
        self._native.linear(x, matrix, bias, out, round_to_bfloat16=round_to_bfloat16)
        return out

    def accepts_linear_packed(self, x: Floats, weight: _Packed, bias: Floats | None = None) -> bool:
        return (
            isinstance(weight, PackedMatrix)
            and are_floats(x)
            and (bias is None or are_floats(bias))
        )

    def accepts_linear_decoded(
        self, x: Floats, weight: _Packed, bias: Floats | None = None
    ) -> bool:
        return (
            isinstance(weight, Weight)
            and stored_matrix(weight) is None
            and are_floats(x)
            and (bias is None or are_floats(bias))
        )

    def linear_decoded(self, x: Floats, weight: Weight, bias: Floats | None = None) -> Floats:
        """For what the extension cannot read (formats, and scales, of which it has no decoder):
        decoded by NumPy, a few rows a time."""
        out = np.empty((len(x), len(weight.data)), np.float32)
        step = max(1, _DECODED_VALUES // max(1, weight.columns))
        for start in range(0, len(weight.data), step):
            stop = min(start + step, len(weight.data))
            values = np.ascontiguousarray(weight.decode(start, stop)).view(np.uint8)
            matrix = _native.Matrix("f32", values, stop - start, weight.columns, False)
            part = np.empty((len(x), stop - start), np.float32)
            part_bias = None if bias is None else bias[start:stop]
            self._native.linear(x, matrix, part_bias, part)
            out[:, start:stop] = part
        return out

    def accepts_embed(self, table: _Packed, token_ids: NDArray[np.int32]) -> bool:
        return (
            isinstance(table, Weight)
            and stored_matrix(table) is not None
            and are_integers(token_ids)
        )

    def accepts_embed_packed(self, table: _Packed, token_ids: NDArray[np.int32]) -> bool:
        return isinstance(table, PackedMatrix) and are_integers(token_ids)

    def embed(self, table: _Packed, token_ids: NDArray[np.int32]) -> Floats:
        matrix = _matrix(table)
        out = np.empty((len(token_ids), matrix.columns), np.float32)
        self._native.embed(matrix, token_ids, out)
        return out

    # Rows and single values --------------------------------------------------------------

    def accepts_rms_norm(self, x: Floats, weight: Floats | None, epsilon: float) -> bool:
        return are_floats(x) and x.ndim > 0 and (weight is None or are_floats(weight))

    def rms_norm(self, x: Floats, weight: Floats | None, epsilon: float) -> Floats:
        out = np.empty_like(x)
        self._native.rms_norm(x, weight, epsilon, out)
        return out

    def accepts_gate(self, gate_values: Floats, up: Floats, activation: Activation) -> bool:
        return are_floats(gate_values) and are_floats(up) and activation in _ACTIVATIONS

    def gate(self, gate_values: Floats, up: Floats, activation: Activation) -> Floats:
        out = np.empty_like(up)
        self._native.gate(gate_values, up, activation, out)
        return out

    def accepts_clamped_gate(self, gate_values: Floats, up: Floats, numbers: ClampedSwish) -> bool:
        return are_floats(gate_values) and are_floats(up)

    def clamped_gate(self, gate_values: Floats, up: Floats, numbers: ClampedSwish) -> Floats:
        out = np.empty_like(up)
        limit, slope, offset = numbers.limit, numbers.slope, numbers.offset
        self._native.clamped_gate(gate_values, up, limit, slope, offset, out)
        return out

    def accepts_add(self, x: Floats, y: Floats, scale: float = 1.0) -> bool:
        return are_floats(x) and are_floats(y) and x.shape == y.shape

    def add(self, x: Floats, y: Floats, scale: float = 1.0, *, through: str = "size") -> Floats:
        # Scaled, the extension rounds once and NumPy twice: one of them must do for all sizes.
        if scale == 1.0 and _numpy_serves(x, through):
            return elementwise.add(x, y, scale)
        out = np.empty_like(x)
        self._native.add(x, y, scale, out)
        return out

    def accepts_scale(self, x: Floats, factor: float) -> bool:
        return are_floats(x)

    def scale(self, x: Floats, factor: float, *, through: str = "size") -> Floats:
        if _numpy_serves(x, through):
            return elementwise.scale(x, factor)
        out = np.empty_like(x)
        self._native.scale(x, factor, out)
        return out

    def accepts_soft_cap(self, x: Floats, cap: float) -> bool:
        return are_floats(x)

    def soft_cap(self, x: Floats, cap: float) -> Floats:
        out = np.empty_like(x)
        self._native.soft_cap(x, cap, out)
        return out

    def accepts_take_rows(self, x: Floats, indices: NDArray[np.int32]) -> bool:
        return are_floats(x) and are_integers(indices)

    def take_rows(self, x: Floats, indices: NDArray[np.int32]) -> Floats:
        out = np.empty((len(indices), *x.shape[1:]), np.float32)
        self._native.take_rows(x, indices, out)
        return out

    def accepts_rotary(self, x: Floats, cosine_sine: Floats, interleaved: bool) -> bool:
        return are_floats(x) and are_floats(cosine_sine)

    def rotary(self, x: Floats, cosine_sine: Floats, interleaved: bool) -> Floats:
        out = np.empty_like(x)
        self._native.rotary(x, cosine_sine, interleaved, out)
        return out

    # State -------------------------------------------------------------------------------

    def accepts_stream_write(self, pages: NDArray[Any], values: Floats, rows: PagedRows) -> bool:
        return are_pages(pages) and are_floats(values) and are_rows(rows)

    def stream_write(self, pages: NDArray[Any], values: Floats, rows: PagedRows) -> None:
        self._native.stream_write(
            pages, values, rows.row_starts, rows.positions, rows.page_table, rows.page_tokens
        )

    def accepts_attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> bool:
        return (
            are_floats(queries)
            and are_pages(keys)
            and are_pages(values)
            and are_rows(rows)
            and (soft_cap is None or soft_cap > 0)
        )

    def attention(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        **tuning: int,
    ) -> Floats:
        return attend(
            self._native,
            queries,
            keys,
            values,
            rows,
            scale,
            window,
            soft_cap,
            round_to_bfloat16=False,
            sinks=None,
            **tuning,
        )

    def accepts_attention_bfloat16(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> bool:
        return state_format(keys, values).name == "bf16" and self.accepts_attention(
            queries, keys, values, rows, scale, window, soft_cap
        )

    def attention_bfloat16(
        self,
        queries: Floats,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        **tuning: int,
    ) -> Floats:
        """With queries and the softmax's weights rounded to bfloat16, as keys and values are."""
        return attend(
            self._native,
            queries,
            keys,
            values,
            rows,
            scale,
            window,
            soft_cap,
            round_to_bfloat16=True,
            sinks=None,
            **tuning,
        )


def attend(
    native: _native.Kernels,
    queries: Floats,
    keys: NDArray[Any],
    values: NDArray[Any],
    rows: PagedRows,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    *,
    round_to_bfloat16: bool,
    sinks: Floats | None = None,
    **tuning: int,
) -> Floats:
    """The extension's paged attention: float32 [rows, heads, value_size].

    `round_to_bfloat16`: queries and the softmax's weights, as keys and values are. `sinks`: as in
    `attention_with_sinks`. `tuning`: ATTENTION_PARAMETERS, which change how long it takes, and no
    bit.
    """
    out = np.empty((*queries.shape[:2], values.shape[-1]), np.float32)
    native.attention(
        queries,
        keys,
        values,
        rows.row_starts,
        rows.positions,
        rows.page_table,
        rows.page_tokens,
        scale,
        NO_WINDOW if window is None else window,
        soft_cap or 0.0,
        out,
        round_to_bfloat16=round_to_bfloat16,
        sinks=sinks,
        **tuning,
    )
    return out
