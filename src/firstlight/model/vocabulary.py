"""Embedding and output head where each of several ranks has some of the vocabulary's rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from firstlight.model.spec import ModelSpec
from firstlight.ops import Collective, Ops, PackedWeight, Tensor


def embed_part(
    ops: Ops,
    spec: ModelSpec,
    ranks: Collective,
    table: PackedWeight,
    token_ids: NDArray[np.int32],
) -> Tensor:
    """The embedding of every token, float32 [n, hidden_size]: each row comes from the rank that has
    it, and the others add zeros, which rounds nothing.

    Args:
        table: this rank's rows.
        token_ids: int32 [n].
    """
    assert spec.part is not None
    first, stop = spec.part.vocabulary[spec.part.rank : spec.part.rank + 2]
    mine = np.flatnonzero((token_ids >= first) & (token_ids < stop)).astype(np.int32)
    x = ops.upload(np.zeros((len(token_ids), spec.hidden_size), np.float32))
    if len(mine):
        rows = ops.embed(table, token_ids[mine] - np.int32(first))
        ops.add_rows(x, rows, mine, ops.upload(np.ones(len(mine), np.float32)))
    return ranks.sum(x)


def join_vocabulary(spec: ModelSpec, ranks: Collective, logits: Tensor) -> Tensor:
    """Logits of the whole vocabulary, float32 [n, vocabulary_size], from those of this rank's
    rows."""
    assert spec.part is not None
    bounds = spec.part.vocabulary
    return ranks.join_columns(logits, [stop - first for first, stop in pairwise(bounds)])
