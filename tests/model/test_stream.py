"""Streams: what they are kept in, how far they reach back, and who shares pages."""

from __future__ import annotations

import pytest

from firstlight.errors import RequestError
from firstlight.model.stream import (
    VALUE_BYTES,
    StreamGroup,
    StreamSpec,
    first_seen,
    group_streams,
    state_dtype,
    whole_pages,
)


def test_state_dtype() -> None:
    assert state_dtype("auto") == "bfloat16"
    assert state_dtype("auto", exact=True) == "float32"
    for asked in VALUE_BYTES:
        assert state_dtype(asked) == asked
    assert state_dtype("float32", exact=True) == "float32"


def test_exactness_and_rounded_state_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="exact excludes"):
        state_dtype("bfloat16", exact=True)


@pytest.mark.parametrize(
    ("window", "run", "firsts"),
    [
        (None, 1, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (3, 1, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]),
        (4, 4, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]),
        (8, 4, [0, 0, 0, 0, 0, 0, 0, 0, 4, 4]),
        (2, 2, [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]),
    ],
)
def test_the_first_position_that_is_needed(window: int | None, run: int, firsts: list[int]) -> None:
    assert [first_seen(window, run, position) for position in range(10)] == firsts


def test_streams_that_reach_back_alike_share_pages() -> None:
    key = StreamSpec("key", (1, 4), window=8)
    entries = StreamSpec("compressed", (4,), stride=6)
    open_run = StreamSpec("open", (2, 4), window=6, run=6)
    before = StreamSpec("before", (2, 4), window=8, run=4)
    layers = ((key,), (key, entries, open_run), (before, entries))
    assert group_streams(layers) == (
        StreamGroup(1, 8, ((0, 0), (1, 0))),
        StreamGroup(6, None, ((1, 1), (2, 1))),
        StreamGroup(1, 6, ((1, 2),), run=6),
        StreamGroup(1, 8, ((2, 0),), run=4),
    )
    assert whole_pages(layers, 16) == 48
    assert whole_pages(layers[:1], 16) == 16
