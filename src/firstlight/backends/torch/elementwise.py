"""Ops on values and rows by themselves, on the device; float32 throughout."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from firstlight.backends.base import Kernel
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import ClampedSwish


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    # Divided by its largest value first: squares could leave the range of float32.
    most = x.abs().amax(-1, keepdim=True).clamp(1e-37, 1e38)
    small = x / most
    normed = small * torch.rsqrt(small.square().mean(-1, keepdim=True) + epsilon / most / most)
    return normed if weight is None else normed * weight


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    # The mean of what is left is what the first mean was rounded by.
    centred = x - x.mean(-1, keepdim=True)
    centred = centred - centred.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon) * weight + bias


def rotary(x: torch.Tensor, cosine_sine: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = cosine_sine.shape[2]
    cosine, sine = cosine_sine[:, None, 0], cosine_sine[:, None, 1]
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., :half], turning[..., half:]
    turned = first * cosine - second * sine, second * cosine + first * sine
    out = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return out if not rest.shape[-1] else torch.cat((out, rest), -1)


def gate(gate_values: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return functional.silu(gate_values) * up
    if activation == "gelu":
        return functional.gelu(gate_values) * up
    if activation == "gelu_tanh":
        return functional.gelu(gate_values, approximate="tanh") * up
    if activation == "relu":
        return functional.relu(gate_values) * up
    raise ValueError(f"unknown activation {activation!r}")


def clamped_gate(
    gate_values: torch.Tensor, up: torch.Tensor, numbers: ClampedSwish
) -> torch.Tensor:
    bounded = gate_values.clamp(max=numbers.limit)
    swish = bounded * torch.sigmoid(numbers.slope * bounded)
    return swish * (up.clamp(-numbers.limit, numbers.limit) + numbers.offset)


def add(x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return x + y if scale == 1.0 else torch.add(x, y, alpha=float(np.float32(scale)))


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * float(np.float32(factor))


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(x / cap)


def take_columns(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return x[..., start:stop].contiguous()


def join_columns(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat((x, y), -1)


class RowKernels:
    """Those that need row numbers of the host, and all above."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        alone = (
            rms_norm, layer_norm, rotary, gate, clamped_gate, add, scale, soft_cap, take_columns,
            join_columns,
        )  # fmt: skip
        return (
            *(Kernel(run.__name__, "plain", run) for run in alone),
            Kernel("take_rows", "plain", self.take_rows),
            Kernel("add_rows", "plain", self.add_rows),
        )

    def take_rows(self, x: torch.Tensor, indices: NDArray[np.int32]) -> torch.Tensor:
        return x.index_select(0, self._transfer.upload(indices.astype(np.int64)))

    def add_rows(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        indices: NDArray[np.int32],
        factors: torch.Tensor,
    ) -> None:
        rows = self._transfer.upload(indices.astype(np.int64))
        x.index_copy_(0, rows, x.index_select(0, rows) + factors[:, None] * y)
