"""The part of a checkpoint's model that a rank has."""

from __future__ import annotations

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.formats.base import Format
from firstlight.model.sharding import part_of_model
from firstlight.model.spec import ModelSpec
from firstlight.model.stored import column_unit
from firstlight.model.tensor_source import TensorSource


def rank_part(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    target: Format | None,
    rank: int,
    ranks: int,
    device: str,
) -> ModelSpec:
    """The spec of a rank's part, divided between blocks of the format that matrices are kept in.

    What is converted may be divided within blocks as it is stored: it is decoded first.

    Raises:
        FirstlightError: as `part_of_model`.
    """

    def unit_of(source: TensorSource) -> int:
        if target is not None and source.shape[-1] % target.block_values == 0:
            return target.block_values
        return column_unit(source, checkpoint)

    return part_of_model(spec, rank, ranks, unit_of, f"device {device!r}")
