"""How a gated network joins its two products: plain, or with bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.elementwise import Activation
from firstlight.ops.shape import Shape, rows_range

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any


@dataclass(frozen=True)
class ClampedSwish:
    """The numbers of `clamped_gate`.

    Attributes:
        limit: of the gate from above, and of the other product to both sides.
        slope: of the sigmoid.
        offset: added to the other product.
    """

    limit: float
    slope: float = 1.0
    offset: float = 0.0


# `gate` with an activation, or `clamped_gate` with its numbers.
Gating = Activation | ClampedSwish


def _clamped_gate_cost(gate_values: Floats, up: Floats, numbers: ClampedSwish) -> Cost:
    return Cost(12 * up.size, 10 * up.size)


def _clamped_gate_shape(gate_values: Floats, up: Floats, numbers: ClampedSwish) -> Shape:
    return up.shape[-1], rows_range(up.shape[0])


@define(
    Tolerance(
        2e-6, 1e-7, "a few float32 roundings and one transcendental function of the host's library"
    ),
    _clamped_gate_cost,
    shape=_clamped_gate_shape,
)
def clamped_gate(gate_values: Floats, up: Floats, numbers: ClampedSwish) -> Floats:
    """g * sigmoid(slope * g) * (u + offset), g = min(gate_values, limit), u = up within +-limit.

    Swish with a slope is of Ramachandran et al. 2017 (arXiv:1710.05941), section 5. gpt-oss has
    slope 1.702, limit 7 and offset 1 (its model card, arXiv:2508.10925, section 2.2, and its
    reference implementation); DeepSeek-V4 slope 1, a limit of its config and no offset.

    Args:
        gate_values, up: float32 [n, columns].
        numbers: limit, slope and offset.

    Returns:
        float32 [n, columns], computed in float64.
    """
    gate = np.minimum(gate_values.astype(np.float64), numbers.limit)
    bounded = np.clip(up.astype(np.float64), -numbers.limit, numbers.limit)
    # The tanh form of the sigmoid does not overflow.
    swish = gate * (0.5 * (1.0 + np.tanh(0.5 * numbers.slope * gate)))
    return (swish * (bounded + numbers.offset)).astype(np.float32)


def apply_gating(ops: Ops, gate_values: Tensor, up: Tensor, gating: Gating) -> Tensor:
    """float32 [n, columns] of both -> [n, columns]."""
    if isinstance(gating, ClampedSwish):
        return ops.clamped_gate(gate_values, up, gating)
    return ops.gate(gate_values, up, gating)
