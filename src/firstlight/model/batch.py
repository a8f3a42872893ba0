"""What one step computes: a ragged row of tokens from many sequences, prefill and decode mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.model.rope import AngleTable
from firstlight.ops import PagedRows

Integers = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of one step, all arrays int32.

    Attributes:
        token_ids: [rows].
        positions: [rows]; position of each token in its sequence.
        lengths: [rows]; the sequence length that rules each row's rotary frequencies.
        row_starts: [sequences + 1]; rows of sequence s are row_starts[s]:row_starts[s + 1].
        page_tables: one [sequences, pages] for each stream group of the decoder.
        page_tokens: token positions per page.
        wanted: [m]; rows whose logits are wanted.
        angles: float32 [rows, 2, rope.size / 2] for some tables, of all rows; others are made as
            they are asked for.
    """

    token_ids: Integers
    positions: Integers
    lengths: Integers
    row_starts: Integers
    page_tables: tuple[Integers, ...]
    page_tokens: int
    wanted: Integers
    angles: Mapping[AngleTable, Floats] = field(default_factory=dict)

    def paged_rows(self, group: int) -> PagedRows:
        """The rows as one stream group sees them."""
        return PagedRows(self.row_starts, self.positions, self.page_tables[group], self.page_tokens)
