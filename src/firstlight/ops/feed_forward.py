"""The gated feed-forward network as one op, defined by smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.elementwise import Activation
from firstlight.ops.shape import Shape, rows_range, storage

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any
PackedWeight = Any


def _gated_mlp_cost(
    x: Tensor,
    gate: PackedWeight,
    up: PackedWeight,
    down: PackedWeight,
    activation: Activation,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Cost:
    rows = x.shape[0]
    weights = gate.nbytes + up.nbytes + down.nbytes
    values = sum(w.shape[0] * w.shape[1] for w in (gate, up, down))
    return Cost(weights + 8 * rows * x.shape[1], 2 * rows * values + 8 * rows * up.shape[0])


def _gated_mlp_shape(
    x: Tensor,
    gate: PackedWeight,
    up: PackedWeight,
    down: PackedWeight,
    activation: Activation,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Shape:
    return *storage(gate), *storage(down), *gate.shape, rows_range(x.shape[0])


@define(
    Tolerance(
        relative=4e-6,
        absolute=1e-6,
        reason="two products in a row, each with the tolerance of `linear`",
    ),
    _gated_mlp_cost,
    composite=True,
    shape=_gated_mlp_shape,
)
def gated_mlp(
    ops: Ops,
    x: Tensor,
    gate: PackedWeight,
    up: PackedWeight,
    down: PackedWeight,
    activation: Activation,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """down(activation(gate(x)) * up(x)), Shazeer 2020 (arXiv:2002.05202), equation 6.

    Args:
        ops: whose `linear` and `gate` this is made of.
        x: float32 [n, columns].
        gate: [width, columns].
        up: [width, columns].
        down: [columns, width].
        activation: as in `gate`.
        biases: of gate, up and down, float32 [width], [width] and [columns]; or None.

    Returns:
        float32 [n, columns].
    """
    gate_bias, up_bias, down_bias = biases or (None, None, None)
    gated = ops.gate(ops.linear(x, gate, gate_bias), ops.linear(x, up, up_bias), activation)
    return ops.linear(gated, down, down_bias)
