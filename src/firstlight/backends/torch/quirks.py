"""What is known of some types of devices and cannot be asked of them: the one place that names any.

A type that is not in the table is taken to be an accelerator with memory of its own, and all else
about it is found out by asking PyTorch or by trying (device.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

HOST = torch.device("cpu")
"""Where tensors lie in the host's own memory."""

INSTEAD = "torch:cpu"
"""The device that is there wherever PyTorch is."""


def _metal_memory() -> tuple[int, int]:
    total = torch.mps.recommended_max_memory()
    return max(0, total - torch.mps.driver_allocated_memory()), total


@dataclass(frozen=True)
class Quirk:
    """What is particular about a type of device.

    Attributes:
        on_host: its tensors lie in the host's memory: weights are used where the file is mapped.
        pinned: copies from the host go through memory that the system may not move.
        decoded_values: so many values of a weight are decoded at a time: few enough to stay in
            the processor's caches, or many enough to occupy a large chip.
        memory: (free, total) bytes, where `torch.accelerator` cannot tell.
    """

    on_host: bool = False
    pinned: bool = True
    decoded_values: int = 1 << 25
    memory: Callable[[], tuple[int, int]] | None = None


_QUIRKS = {
    "cpu": Quirk(on_host=True, pinned=False, decoded_values=1 << 20),
    # Apple's chips share the host's memory, so that pinning gains nothing.
    "mps": Quirk(pinned=False, memory=_metal_memory),
}


def quirk_of(device: torch.device) -> Quirk:
    """What is known of a device's type."""
    return _QUIRKS.get(device.type, Quirk())
