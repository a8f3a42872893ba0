"""A backend that lays matrices out anew: the definitions of all ops, on weights in panels of rows.

The bytes of a panel are turned around, so that nothing that reads them as they are stored works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.base import Bytes, Format, Weight

PANEL_ROWS = 4


@dataclass(frozen=True, eq=False)
class PanelMatrix:
    format: Format
    shape: tuple[int, ...]
    data: Bytes
    name: str

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)


class PanelBackend(NumpyBackend):
    """Args:
    layout: name of the byte layout.
    row_group: as `packed_row_group` gives it.
    in_place: formats that are used as they are stored.

    `packed_rows` counts the rows that were packed.
    """

    def __init__(
        self,
        layout: str = "panels",
        row_group: int | None = PANEL_ROWS,
        in_place: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.packed_rows = 0
        self._layout, self._row_group, self._in_place = layout, row_group, in_place

    def packed_layout(self) -> str | None:
        return self._layout

    def packed_bytes(self, format: Format, rows: int, columns: int) -> int | None:
        if format.name in self._in_place:
            return None
        return -(-rows // PANEL_ROWS) * PANEL_ROWS * format.row_bytes(columns)

    def packed_row_group(self, format: Format) -> int | None:
        return self._row_group

    def pack_into(self, weight: Weight, out: Bytes) -> None:
        assert out.ctypes.data % 64 == 0
        row_bytes = weight.format.row_bytes(weight.columns)
        panels = out.reshape(-1, PANEL_ROWS * row_bytes)
        for panel, start in zip(panels, range(0, weight.rows, PANEL_ROWS), strict=True):
            rows = weight.data[start : start + PANEL_ROWS].reshape(-1)
            panel[:] = 0
            panel[: len(rows)] = rows[::-1]
        self.packed_rows += weight.rows

    def packed_from(
        self, format: Format, shape: tuple[int, ...], data: Bytes, name: str
    ) -> PanelMatrix:
        return PanelMatrix(format, shape, data, name)

    def unpack(self, packed: Any) -> Weight:
        if isinstance(packed, Weight):
            return packed
        rows, columns = math.prod(packed.shape[:-1]), packed.shape[-1]
        row_bytes = packed.format.row_bytes(columns)
        panels = packed.data.reshape(-1, PANEL_ROWS * row_bytes)
        stored = [
            panel[: min(PANEL_ROWS, rows - start) * row_bytes][::-1].tobytes()
            for panel, start in zip(panels, range(0, rows, PANEL_ROWS), strict=True)
        ]
        import numpy as np

        data = np.frombuffer(b"".join(stored), np.uint8).reshape(rows, row_bytes)
        return Weight(packed.format, packed.shape, data, packed.name)

    def is_packed(self, argument: Any) -> bool:
        return isinstance(argument, (Weight, PanelMatrix))
