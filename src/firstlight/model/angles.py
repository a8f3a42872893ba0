"""The rotary tables of one step, each made when a layer first asks for it."""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Floats
from firstlight.model.batch import Batch
from firstlight.model.rope import cosines_and_sines
from firstlight.model.rope_spec import RopeSpec
from firstlight.ops import Ops, Tensor
from firstlight.ops.paging import completing

# A rope; the stride of runs, 0 for the rows themselves; whether it turns back.
_Key = tuple[RopeSpec, int, bool]


class Angles:
    """Tables that the op `rotary` takes, for the rows of one batch."""

    def __init__(self, ops: Ops, batch: Batch) -> None:
        self._ops = ops
        self._batch = batch
        self._tables: dict[_Key, Tensor] = {}

    def of(self, rope: RopeSpec) -> Tensor:
        """Of every row at its position: float32 [rows, 2, rope.size / 2]."""
        return self._table((rope, 0, False))

    def back(self, rope: RopeSpec) -> Tensor:
        """The same the other way round: what `of` has turned, it turns back."""
        return self._table((rope, 0, True))

    def of_runs(self, rope: RopeSpec, stride: int) -> Tensor:
        """Of the first positions of the runs that rows complete, in the order of these rows."""
        return self._table((rope, stride, False))

    def _table(self, key: _Key) -> Tensor:
        if key not in self._tables:
            self._tables[key] = self._ops.upload(self._made(*key))
        return self._tables[key]

    def _made(self, rope: RopeSpec, stride: int, back: bool) -> Floats:
        batch = self._batch
        if not stride and not back and rope in batch.angles:
            return batch.angles[rope]
        if not stride:
            table = cosines_and_sines(rope, batch.positions, batch.lengths)
            return table * np.array([1, -1], np.float32)[:, None] if back else table
        rows = completing(batch.positions, stride)
        firsts = batch.positions[rows] - np.int32(stride - 1)
        return cosines_and_sines(rope, firsts, batch.lengths[rows])
