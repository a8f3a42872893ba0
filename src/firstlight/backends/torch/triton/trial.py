"""A small kernel with what all others are made of: masked loads, a product, a loop, a store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_SIZE = 16


def works(device: torch.device) -> bool:
    """Whether the kernel runs on this device and gives the right numbers."""
    values = torch.arange(_SIZE * _SIZE, dtype=torch.float32).reshape(_SIZE, _SIZE)
    out = torch.zeros((_SIZE, _SIZE), dtype=torch.float32, device=device)
    _trial[(1,)](values.to(device), out, 3, _SIZE - 1, SIZE=_SIZE)
    values[-1] = 0
    # All of them are whole numbers below 2^24.
    return torch.equal(out.to(values.device), 3 * (values @ values.T))


@triton.jit
def _trial(
    values: tl.tensor, out: tl.tensor, times: tl.tensor, rows: tl.tensor, SIZE: tl.constexpr
) -> None:
    row = tl.arange(0, SIZE)
    places = row[:, None] * SIZE + row[None, :]
    found = tl.load(values + places, mask=row[:, None] < rows, other=0.0)
    total = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for _ in range(times):
        total += tl.dot(found, tl.trans(found), input_precision="ieee")
    tl.store(out + places, total)
