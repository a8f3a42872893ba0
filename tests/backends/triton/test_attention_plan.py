"""How attention is cut into tiles and parts, and how large they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import launching  # noqa: E402
from firstlight.backends.torch.triton.attention_plan import columns, plan  # noqa: E402
from firstlight.backends.torch.triton.query_tiles import (  # noqa: E402
    LEAST_PART,
    MOST_PARTS,
    split_tiles,
    whole_tiles,
)
from firstlight.ops.paging import PagedRows  # noqa: E402

_HOST = torch.device("cpu")
_TRANSFER = Transfer(_HOST)


def _rows(*sequences: tuple[int, int]) -> PagedRows:
    counts = [count for _, count in sequences]
    positions = [np.arange(held, held + count) for held, count in sequences]
    width = max(-(-(held + count) // 16) for held, count in sequences)
    return PagedRows(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        np.concatenate(positions).astype(np.int32),
        np.arange(len(counts) * width, dtype=np.int32).reshape(-1, width),
        16,
    )


@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize("size", [16, 64])
def test_every_query_is_in_one_tile(group: int, size: int) -> None:
    rows = _rows((5, 1), (0, 40), (0, 0), (300, 8), (2, 9))
    split = split_tiles(rows, None, group, size, _TRANSFER)
    whole = whole_tiles(rows, group, size, _TRANSFER)
    assert split is not None
    assert whole is not None
    assert split.rows.tolist() == [0, *range(41, 49)]
    assert whole.rows.tolist() == [*range(1, 41), *range(49, 58)]
    for tiles in (split, whole):
        queries = []
        for sequence, first, count, position, before, query in tiles.numbers.tolist():
            assert rows.row_starts[sequence] == first
            assert rows.row_starts[sequence + 1] == first + count
            assert rows.positions[first] == position
            assert tiles.rows[before] == first
            queries += [(first, each) for each in range(query, min(query + size, count * group))]
        assert sorted(queries) == sorted(
            (int(first), each)
            for first, last in zip(rows.row_starts[:-1], rows.row_starts[1:], strict=True)
            if first != last and first in tiles.rows.tolist()
            for each in range((last - first) * group)
        )
    assert split_tiles(rows, None, group, size, _TRANSFER) is split


def test_those_with_most_to_read_go_first() -> None:
    tiles = whole_tiles(_rows((0, 40), (500, 9)), 1, 16, _TRANSFER)
    assert tiles is not None
    assert tiles.numbers[:, 0].tolist() == [1, 0, 0, 0]
    assert tiles.numbers[:, 5].tolist() == [0, 32, 16, 0]


def test_a_long_context_is_read_in_parts() -> None:
    def parts(held: int, window: int | None = None) -> int:
        tiles = split_tiles(_rows((held, 1), (3, 1)), window, 1, 16, _TRANSFER)
        assert tiles is not None
        return tiles.parts

    assert parts(LEAST_PART - 1) == 1
    assert parts(LEAST_PART) == 2
    assert parts(5 * LEAST_PART) == 8
    assert parts(1000 * LEAST_PART) == MOST_PARTS
    assert parts(1000 * LEAST_PART, window=100) == 1


def test_columns_are_padded_as_little_as_can_be() -> None:
    sizes = (1, 16, 17, 33, 80, 128, 576)
    cut = [(columns(size).low, columns(size).rest) for size in sizes]
    assert cut == [(16, 0), (16, 0), (32, 0), (32, 16), (64, 16), (128, 0), (512, 64)]


@pytest.mark.parametrize("kind", ["bfloat16", "parts", "float32"])
def test_sizes_fit_what_a_program_can_share(kind: Any) -> None:
    for memory in (64 << 10, 99 << 10, 227 << 10):
        for key, value, shared in ((64, 64, False), (128, 128, False), (576, 512, True)):
            found = plan(1 << 16, columns(key), columns(value), shared, kind, memory)
            assert min(found.tile, found.block) >= 16
            item = 4 if kind == "float32" else 2
            once = item * (key + (0 if shared else value)) * found.block
            assert once * min(found.stages, 2) <= memory


@pytest.mark.skipif(launching.usable(_HOST), reason="Triton runs on the host")
def test_without_a_driver_or_an_interpreter_it_is_not_used() -> None:
    assert launching.version(_HOST) == ""
    assert launching.shared_memory(_HOST) == 64 << 10
