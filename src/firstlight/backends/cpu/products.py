"""The cpu backend's kernels of products with weights, and of embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_integers
from firstlight.backends.cpu.matrices import matrix_of, stored_matrix
from firstlight.backends.cpu.packed import PackedMatrix, packed_bytes
from firstlight.backends.cpu.tuned_matrices import (
    LINEAR_PARAMETERS,
    allows_linear,
    tune_for,
)
from firstlight.formats.base import Floats, Format, Weight
from firstlight.formats.float8 import F8_E4M3
from firstlight.ops.rounding import Rounding, bfloat16_for_bfloat16, bfloat16_for_float8

_Packed = Weight | PackedMatrix

# Weights in a format that the kernels do not know are decoded this many values at a time.
_DECODED_VALUES = 1 << 20


def _matrix(weight: _Packed) -> _native.Matrix:
    matrix = matrix_of(weight)
    if matrix is None:
        raise TypeError(f"the kernels cannot read {weight.format.name} as it lies in memory")
    return matrix


def fixed_point(format: Format) -> Rounding:
    """How products with packed weights of a format round their activations."""
    return "none" if packed_bytes(format, 0, 0) is None else "mixed16"


class ProductKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Shapes and token ids are checked by the extension: ValueError, IndexError or TypeError where
    they are wrong. `accepts_...` leaves to the definition what a kernel was not made for.

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
            *self._of_stored_weights(),
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

    def _of_stored_weights(self) -> tuple[Kernel, ...]:
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
        )

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
