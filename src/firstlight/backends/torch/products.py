"""Products with weights on the device: linear, the rows of an embedding, each head by itself.

A weight lies in its storage format and is decoded as it is used, some rows at a time. Where the
device multiplies bfloat16 into float32 sums, bfloat16 weights are multiplied as they lie.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.torch.matrix import DeviceMatrix
from firstlight.backends.torch.quirks import quirk_of
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.rounding import bfloat16_for_bfloat16

_SUMMED = 8192
"""Terms of a float32 sum that is left to the library."""


class ProductKernels:
    """The kernels of one device.

    Args:
        narrow: whether bfloat16 weights may be multiplied by activations rounded to bfloat16.
    """

    def __init__(self, transfer: Transfer, narrow: bool) -> None:
        self._transfer = transfer
        self._narrow = narrow
        self._decoded_values = quirk_of(transfer.device).decoded_values

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel, in order of preference within an op."""
        narrow = Kernel(
            "linear", "bfloat16", self.linear_bfloat16, _is_bfloat16, rounding=bfloat16_for_bfloat16
        )
        return (
            *((narrow,) if self._narrow else ()),
            Kernel("linear", "decoded", self.linear),
            Kernel("embed", "decoded", self.embed),
            Kernel("head_linear", "decoded", self.head_linear),
        )

    def product(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias, as dispatch would have it."""
        if self._narrow and weight.is_bfloat16:
            return self.linear_bfloat16(x, weight, bias)
        return self.linear(x, weight, bias)

    def linear_bfloat16(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = torch.mm(x.bfloat16(), weight.data.T, out_dtype=torch.float32)
        return out if bias is None else out.add_(bias)

    def linear(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows, columns = weight.shape
        step = max(1, self._decoded_values // max(1, columns))
        if rows <= step or (weight.data.dtype == torch.float32 and weight.scales is None):
            out = _multiply(x, weight.decode(0, rows))
        else:
            out = torch.empty((len(x), rows), dtype=torch.float32, device=x.device)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                out[:, start:stop] = _multiply(x, weight.decode(start, stop))
        return out if bias is None else out.add_(bias)

    def embed(self, table: DeviceMatrix, token_ids: NDArray[np.int32]) -> torch.Tensor:
        return table.decode_rows(self._transfer.upload(token_ids.astype(np.int64)))

    def head_linear(
        self, x: torch.Tensor, weight: DeviceMatrix, first: int, size: int, transposed: bool
    ) -> torch.Tensor:
        heads = x.shape[1]
        rows, columns = weight.shape
        step = rows // max(1, heads)
        start = torch.arange(heads, device=x.device)[:, None] * step + first
        each = (start + torch.arange(size, device=x.device)).reshape(-1)
        parts = weight.decode_rows(each).reshape(heads, size, columns)
        right = parts if transposed else parts.transpose(1, 2)
        return torch.bmm(x.transpose(0, 1), right).transpose(0, 1).contiguous()


def _multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T in float32. Long sums are made of several, which err less than one would where
    a library adds up term by term."""
    columns = x.shape[1]
    out = torch.mm(x[:, :_SUMMED], weight[:, :_SUMMED].T)
    for start in range(_SUMMED, columns, _SUMMED):
        stop = start + _SUMMED
        out += torch.mm(x[:, start:stop], weight[:, start:stop].T)
    return out


def _is_bfloat16(x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None) -> bool:
    return weight.is_bfloat16
