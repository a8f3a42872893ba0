"""The cpu backend's kernels of single values and of rows: norms, gates, sums, rotary embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel, Parameter
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_integers
from firstlight.formats.base import Floats
from firstlight.ops import elementwise
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import ClampedSwish

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")

# Below so many values NumPy adds two arrays in less time than a call of the extension takes. That
# is a guess about all machines; the tuner asks this one.
_WORTH_A_CALL = 1 << 13
_THROUGH = Parameter("through", ("size", "extension", "numpy"), "size")


def _numpy_serves(x: Floats, through: str) -> bool:
    return through == "numpy" or (through == "size" and x.size < _WORTH_A_CALL)


class ElementwiseKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Shapes are checked by the extension: ValueError where they are wrong.

    Args:
        native: the extension's kernels.
    """

    def __init__(self, native: _native.Kernels) -> None:
        self._native = native

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        through = (_THROUGH,)
        return (
            Kernel("rms_norm", "rows", self.rms_norm, self.accepts_rms_norm),
            Kernel("rotary", "rows", self.rotary, self.accepts_rotary),
            Kernel("gate", "vector", self.gate, self.accepts_gate),
            Kernel("clamped_gate", "vector", self.clamped_gate, self.accepts_clamped_gate),
            Kernel("add", "vector", self.add, self.accepts_add, parameters=through),
            Kernel("scale", "vector", self.scale, self.accepts_scale, parameters=through),
            Kernel("soft_cap", "vector", self.soft_cap, self.accepts_soft_cap),
            Kernel("take_rows", "rows", self.take_rows, self.accepts_take_rows),
        )

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
