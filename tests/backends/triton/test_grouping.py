"""Pairs of rows and experts fall into tiles of one expert each, whatever was chosen."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from firstlight.backends.torch.triton.grouping import grouped  # noqa: E402


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("experts", [1, 2, 5, 60])
@pytest.mark.parametrize("pairs", [1, 7, 16, 65])
def test_every_pair_is_in_one_tile_of_its_expert(pairs: int, experts: int, rows: int) -> None:
    chosen = np.random.default_rng(pairs).integers(0, experts, pairs) // 2 * 2 % experts
    groups = grouped(torch.from_numpy(chosen), experts, rows)
    assert groups.tiles == len(groups.experts)
    starts, order = groups.starts.tolist(), groups.order.tolist()
    seen = []
    for tile, expert in enumerate(groups.experts.tolist()):
        if expert < 0:
            continue
        first = starts[expert] + (tile - int(groups.first_tiles[expert])) * rows
        within = order[first : min(first + rows, starts[expert + 1])]
        assert within
        assert set(chosen[within]) == {expert}
        # In their order, so that a tile does not depend on how a device sorts.
        assert within == sorted(within)
        seen += within
    assert sorted(seen) == list(range(pairs))
