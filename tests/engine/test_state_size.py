"""How memory is divided among groups of streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.engine.state_size import longest_sequence, page_counts, pages_per_sequence
from firstlight.errors import InsufficientMemoryError
from firstlight.model.stream import StreamGroup


def groups_of(windows: list[int | None]) -> list[StreamGroup]:
    return [StreamGroup(1, window, ((index, 0),)) for index, window in enumerate(windows)]


@given(
    windows=st.lists(st.sampled_from((None, 1, 7, 100, 5000)), min_size=1, max_size=3, unique=True),
    sizes=st.lists(st.integers(1, 5000), min_size=3, max_size=3),
    memory=st.integers(1, 20_000_000),
    context=st.integers(1, 40_000),
    budget=st.sampled_from((1, 64, 512)),
    page_tokens=st.sampled_from((1, 16, 64)),
)
def test_pages_fill_the_memory_and_one_sequence_fits(
    windows: list[int | None],
    sizes: list[int],
    memory: int,
    context: int,
    budget: int,
    page_tokens: int,
) -> None:
    groups, sizes = groups_of(windows), sizes[: len(windows)]

    def needed(length: int) -> list[int]:
        return [pages_per_sequence(group.window, length, budget, page_tokens) for group in groups]

    def size(counts: list[int] | tuple[int, ...]) -> int:
        return sum(count * each for count, each in zip(counts, sizes, strict=True))

    least = size(needed(min(context, page_tokens)))
    if least > memory:
        with pytest.raises(InsufficientMemoryError, match=str(least)):
            page_counts(groups, sizes, memory, context, budget, page_tokens)
        return
    counts = page_counts(groups, sizes, memory, context, budget, page_tokens)
    assert size(counts) <= memory
    longest = longest_sequence(groups, counts, context, budget, page_tokens)
    assert all(have >= need for have, need in zip(counts, needed(longest), strict=True))
    if size(needed(context)) <= memory:
        assert longest == context
        # What is left would not make another page of each group.
        assert memory - size(counts) < 2 * sum(sizes)
    else:
        assert size(needed(longest + page_tokens)) > memory


def test_what_is_left_goes_where_usual_sequences_need_it() -> None:
    groups = groups_of([None, 512])
    one = page_counts(groups, [10, 10], 10 * (64 + 17), 4096, 512, 64)
    assert one == (64, 17)  # exactly one sequence of the full context length
    more = page_counts(groups, [10, 10], 100_000, 4096, 512, 64)
    assert sum(more) in (9999, 10_000)
    # Of 2048 tokens 32 pages are full, and at most 10 hold a window and what is being computed.
    assert (more[0] - 64) / (more[1] - 17) == pytest.approx(32 / 10, rel=0.01)
