"""A weight on the device, in its storage format."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from firstlight.backends.torch.decoding import PLAIN, block_decoders
from firstlight.backends.torch.group_scales import (
    DeviceGroupScales,
    decodes_scales,
    put_group_scales,
)
from firstlight.backends.torch.quirks import HOST
from firstlight.backends.torch.transfer import Transfer, as_array
from firstlight.formats.base import BlockScales, Floats, Format, Scales, Weight
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.plain import F32


@dataclass(frozen=True, eq=False)
class DeviceScales:
    """`BlockScales` on the device.

    Attributes:
        values: float32 [row blocks, column blocks].
        rows, columns: of a block.
        first_row: of the weight among the rows that `values` are for.
    """

    values: torch.Tensor
    rows: int
    columns: int
    first_row: int

    def multiply(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Values [len(rows), columns] of those rows of the weight, each rounded once."""
        blocks = torch.div(rows + self.first_row, self.rows, rounding_mode="floor")
        wide = min(self.columns, values.shape[1])
        factors = self.values.index_select(0, blocks).repeat_interleave(wide, 1)
        return values * factors[:, : values.shape[1]]

    def on_host(self) -> BlockScales:
        """The same as a weight of the host has them."""
        values: Floats = self.values.to(HOST).numpy()
        return BlockScales(values, self.rows, self.columns, self.first_row)


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A packed weight of the torch backend.

    Attributes:
        format: of the values.
        shape: [rows, columns], as a Weight's.
        data: [rows, columns] of PyTorch's own type where that is in PLAIN; else uint8
            [rows, format.row_bytes(columns)].
        name: the tensor's name in the checkpoint, for messages.
    """

    format: Format
    shape: tuple[int, ...]
    data: torch.Tensor
    name: str = ""
    scales: DeviceScales | DeviceGroupScales | None = None

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def is_bfloat16(self) -> bool:
        """Whether it can be multiplied as it lies, with activations in bfloat16."""
        return self.data.dtype == torch.bfloat16 and self.scales is None

    def decode(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop as float32 [stop - start, columns], exactly; a view where it can be."""
        values = self._values(self.data[start:stop])
        if self.scales is None:
            return values
        return self.scales.multiply(values, torch.arange(start, stop, device=values.device))

    def decode_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of those numbers, int64 [n] on the device, as float32 [n, columns]."""
        values = self._values(self.data.index_select(0, rows))
        return values if self.scales is None else self.scales.multiply(values, rows)

    def _values(self, data: torch.Tensor) -> torch.Tensor:
        if self.format.name in PLAIN:
            return data.float()
        if not data.numel():
            return torch.empty((len(data), self.columns), device=data.device)
        blocks = data.reshape(-1, self.format.block_bytes)
        return block_decoders()[self.format.name](blocks).reshape(len(data), self.columns)

    def unpack(self) -> Weight:
        """The stored matrix on the host again, for a fallback."""
        data = as_array(self.data.to(HOST))
        row_bytes = self.format.row_bytes(self.columns)
        stored = np.ascontiguousarray(data).view(np.uint8).reshape(self.rows, row_bytes)
        scales = self.scales
        if scales is None:
            return Weight(self.format, self.shape, stored, self.name)
        return Weight(self.format, self.shape, stored, self.name, scales.on_host())


def put_on_device(weight: Weight, transfer: Transfer) -> DeviceMatrix:
    """A weight on the device in its storage format; one that is not decoded there in float32."""
    format, shape, scales = weight.format, weight.shape, weight.scales
    known = format.name in PLAIN or format.name in block_decoders()
    if not (known and _scales_are_known(scales)):
        # f64 values become float32 numbers in every product anyway.
        if format.name != "f64":
            name, scaled = weight.name or "a weight", "" if scales is None else " with its scales"
            warnings.warn(
                f"{name}: {format.name}{scaled} is not decoded on {transfer.device}; "
                "it takes four bytes a value there. --weights bf16 or int8 takes less",
                stacklevel=3,
            )
        data = transfer.load(np.array(weight.decode(), np.float32))
        return DeviceMatrix(F32, shape, data, weight.name)
    dtype = PLAIN.get(format.name)
    stored = transfer.load(weight.data, 1 if dtype is None else dtype.itemsize)
    if dtype is not None:
        stored = stored.reshape(-1).view(dtype).reshape(weight.rows, weight.columns)
    on_device: DeviceScales | DeviceGroupScales | None = None
    if isinstance(scales, BlockScales):
        values = transfer.load(np.asarray(scales.values, np.float32))
        on_device = DeviceScales(values, scales.rows, scales.columns, scales.first_row)
    elif isinstance(scales, GroupScales):
        on_device = put_group_scales(scales, weight.rows, transfer)
    return DeviceMatrix(format, shape, stored, weight.name, on_device)


def _scales_are_known(scales: Scales | None) -> bool:
    if isinstance(scales, GroupScales):
        return decodes_scales(scales)
    return scales is None or isinstance(scales, BlockScales)
