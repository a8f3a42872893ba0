"""Fields of bits of a block taken apart on the device, and tables of values looked up there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from firstlight.backends.torch.transfer import as_tensor
from firstlight.formats.base import Floats


def half(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """The float16 at byte `offset` of every block, as float32 [blocks, 1]."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def words16(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [blocks, 2 n] -> int32 [blocks, n]."""
    wide = packed.int()
    return wide[:, 0::2] | wide[:, 1::2] << 8


def nibbles_apart(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] -> [..., 2 n]: all low nibbles, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), -1)


def nibbles_in_turn(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [blocks, n] -> [blocks, 2 n]: the low nibble of each byte, then its high one."""
    return torch.stack((packed & 15, packed >> 4), 2).flatten(1)


def fields(packed: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Each value's bit fields side by side: [blocks, n] -> [blocks, n * fields], same dtype."""
    return torch.stack([packed >> shift & mask for shift in shifts], 2).flatten(1)


def look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """table[codes], of the codes' shape and what a row of the table has."""
    found = table.index_select(0, codes.reshape(-1).int())
    return found.reshape(*codes.shape, *table.shape[1:])


def scaled(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """values [blocks, n] times scales [blocks, groups], each over an equal run of values."""
    return (values.reshape(*scales.shape, -1) * scales[:, :, None]).flatten(1)


_TABLES: dict[tuple[str, torch.device], torch.Tensor] = {}


def table(name: str, device: torch.device, make: Callable[[], Floats]) -> torch.Tensor:
    """A table of values on a device, put there once."""
    key = name, device
    if key not in _TABLES:
        _TABLES[key] = as_tensor(np.array(make())).to(device)
    return _TABLES[key]
