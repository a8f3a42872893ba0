"""The rotary tables of one step, each made when a layer first asks for it."""

from __future__ import annotations

from firstlight.formats.base import Floats
from firstlight.model.batch import Batch
from firstlight.model.rope import AngleTable
from firstlight.model.rope_spec import RopeSpec
from firstlight.ops import Ops, Tensor
from firstlight.ops.paging import completing


class Angles:
    """Tables that the op `rotary` takes, for the rows of one batch."""

    def __init__(self, ops: Ops, batch: Batch) -> None:
        self._ops = ops
        self._batch = batch
        self._tables: dict[AngleTable, Tensor] = {}

    def of(self, rope: RopeSpec) -> Tensor:
        """Of every row at its position: float32 [rows, 2, rope.size / 2]."""
        return self._table(AngleTable(rope))

    def back(self, rope: RopeSpec) -> Tensor:
        """The same the other way round: what `of` has turned, it turns back."""
        return self._table(AngleTable(rope, back=True))

    def of_runs(self, rope: RopeSpec, stride: int) -> Tensor:
        """Of the first positions of the runs that `PagedRows.runs` gives, in their order."""
        return self._table(AngleTable(rope, stride))

    def _table(self, table: AngleTable) -> Tensor:
        if table not in self._tables:
            self._tables[table] = self._ops.upload(self._made(table))
        return self._tables[table]

    def _made(self, table: AngleTable) -> Floats:
        batch = self._batch
        if table in batch.angles:
            return batch.angles[table]
        positions, lengths = batch.positions, batch.lengths
        if table.stride:
            rows = completing(positions, table.stride)
            positions, lengths = positions[rows], lengths[rows]
        return table.values(positions, lengths)
