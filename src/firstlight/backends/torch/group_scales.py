"""Scales, and zeros, of groups of columns on the device, as they are stored.

NVFP4's matrices as published, and those of GPTQ, AWQ and compressed-tensors that no block format
holds exactly, are bare codes with such scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from firstlight.backends.torch.decoding import PLAIN, block_decoders
from firstlight.backends.torch.quirks import HOST
from firstlight.backends.torch.transfer import Transfer, as_array
from firstlight.formats.base import Format
from firstlight.formats.group_scales import GroupScales


@dataclass(frozen=True, eq=False)
class DeviceGroupScales:
    """`GroupScales` of a weight's own rows on the device.

    Attributes:
        data: uint8 [rows, groups * format.block_bytes].
        format: of the scales, with single values.
        group: columns of a group; the last may be cut short.
        zero: of every group, where `zeros` is None.
        zeros: int16 [rows, groups].
        group_of: int64 [columns], the group of each column, where groups are not neighbours.
        factor, divisor: float32 [1]; every scale is multiplied or divided by it first.
    """

    data: torch.Tensor
    format: Format
    group: int
    zero: int
    zeros: torch.Tensor | None
    group_of: torch.Tensor | None
    factor: torch.Tensor | None
    divisor: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        parts = self.data, self.zeros, self.group_of, self.factor, self.divisor
        return sum(int(part.nbytes) for part in parts if part is not None)

    def multiply(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The weight's values [len(rows), columns] of the codes of those rows; the float32
        operations are those of `GroupScales.multiply`, in their order."""
        columns = values.shape[1]
        if self.zeros is not None:
            values = values - self._spread(self.zeros.index_select(0, rows).float(), columns)
        elif self.zero:
            values = values - float(self.zero)
        return values * self._spread(self._scales(rows), columns)

    def _scales(self, rows: torch.Tensor) -> torch.Tensor:
        stored = self.data.index_select(0, rows)
        dtype = PLAIN.get(self.format.name)
        if dtype is not None:
            scales = stored.view(dtype).float()
        else:
            decode = block_decoders()[self.format.name]
            scales = decode(stored.reshape(-1, 1)).reshape(stored.shape)
        if self.factor is not None:
            scales = scales * self.factor
        # Not by a number of the host: a device may then multiply by its reciprocal.
        return scales if self.divisor is None else scales / self.divisor

    def _spread(self, groups: torch.Tensor, columns: int) -> torch.Tensor:
        """Of each group [n, groups] for each column [n, columns]."""
        if self.group_of is not None:
            return groups.index_select(1, self.group_of)
        return groups.repeat_interleave(min(self.group, columns), 1)[:, :columns]

    def on_host(self) -> GroupScales:
        """The same as a weight of the host has them."""

        def number(part: torch.Tensor | None) -> np.float32 | None:
            return None if part is None else np.float32(as_array(part.to(HOST))[0])

        zeros = None if self.zeros is None else as_array(self.zeros.to(HOST))
        group_of = None if self.group_of is None else as_array(self.group_of.to(HOST))
        return GroupScales(
            as_array(self.data.to(HOST)),
            self.format,
            self.group,
            self.zero,
            zeros,
            None if group_of is None else group_of.astype(np.intp),
            number(self.factor),
            number(self.divisor),
        )


def decodes_scales(scales: GroupScales) -> bool:
    """Whether the scales' own format is one of single values that is decoded on a device."""
    name = scales.format.name
    return name in PLAIN or (scales.format.block_bytes == 1 and name in block_decoders())


def put_group_scales(scales: GroupScales, rows: int, transfer: Transfer) -> DeviceGroupScales:
    """The scales of a weight with so many rows, without those of others in the same tensor."""
    own = slice(scales.first_row, scales.first_row + rows)

    def number(value: np.float32 | None) -> torch.Tensor | None:
        return None if value is None else transfer.load(np.full(1, value, np.float32))

    return DeviceGroupScales(
        transfer.load(np.ascontiguousarray(scales.data[own])),
        scales.format,
        scales.group,
        scales.zero,
        None if scales.zeros is None else transfer.load(scales.zeros[own]),
        None if scales.group_of is None else transfer.load(scales.group_of.astype(np.int64)),
        number(scales.factor),
        number(scales.divisor),
    )
