"""The page allocator against a model that remembers, position by position, what is held."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from firstlight.engine.pages import NO_PAGE, PageAllocator, PageTable
from firstlight.engine.state_size import pages_per_sequence
from firstlight.errors import InsufficientMemoryError
from firstlight.model.stream import StreamGroup

# Windows, and runs of positions by which they move.
WINDOWS = ((None, 1), (1, 1), (3, 1), (4, 1), (9, 1), (3, 3), (4, 4), (6, 3), (8, 4))


def last_seen_with(position: int, run: int) -> int:
    """The last position of the run that a position is in."""
    return (position // run + 1) * run - 1


@dataclass(eq=False)
class Model:
    """A sequence as the test sees it.

    Attributes:
        length: positions that have been asked for.
        held: for each group, the positions that its pages hold.
    """

    table: PageTable
    length: int = 0
    held: list[set[int]] = field(default_factory=list)


class Pages(RuleBasedStateMachine):
    """Any order of what an engine may do with the pages of several sequences."""

    sequences = Bundle("sequences")

    @initialize(
        page_tokens=st.integers(1, 5),
        windows=st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=3, unique=True),
        capacity=st.integers(1, 12),
    )
    def create(
        self, page_tokens: int, windows: list[tuple[int | None, int]], capacity: int
    ) -> None:
        self.page_tokens = page_tokens
        self.windows = windows
        groups = tuple(
            StreamGroup(1, window, ((index, 0),), run)
            for index, (window, run) in enumerate(windows)
        )
        # Unequal, so that now one group runs out first and now another.
        self.capacities = tuple(capacity + 2 * index for index in range(len(windows)))
        self.pages = PageAllocator(groups, self.capacities, page_tokens)
        self.models: list[Model] = []

    @rule(target=sequences)
    def start(self) -> Model:
        model = Model(self.pages.new_table(), held=[set() for _ in self.windows])
        self.models.append(model)
        return model

    @rule(model=sequences, more=st.integers(0, 15))
    def extend(self, model: Model, more: int) -> None:
        length = model.length + more
        whole = range(-(-length // self.page_tokens) * self.page_tokens)
        # Positions before the end so far are not given pages again, even if they slid away.
        covered = -(-model.length // self.page_tokens) * self.page_tokens
        new = set(whole) - set(range(covered))
        needed = len(new) // self.page_tokens
        before = copy.deepcopy(model.table.pages), self.free()
        if any(needed > free for free in self.free()):
            with pytest.raises(InsufficientMemoryError, match="more pages are needed"):
                self.pages.extend(model.table, length)
            assert (model.table.pages, self.free()) == before
            return
        self.pages.extend(model.table, length)
        model.length = length
        for held in model.held:
            held |= new

    @rule(model=sequences)
    def slide(self, model: Model) -> None:
        self.pages.slide(model.table, model.length)
        for (window, run), held in zip(self.windows, model.held, strict=True):
            if window is not None:
                seen = range(last_seen_with(model.length, run) - window + 1, 1 << 30)
                held -= {
                    position
                    for position in held
                    if not any(other in seen for other in self.page_of(position))
                }
                # What is left is at most a window, and the rest of the pages at its two ends.
                bound = pages_per_sequence(window, 1 << 30, 0, self.page_tokens)
                assert len(held) // self.page_tokens <= bound

    @rule(model=sequences, data=st.data())
    def cut(self, model: Model, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, model.length))
        # The next token sees the last window - 1 positions, and where it is not the first of a page
        # it needs the page that it shares with the position before it.
        shared = {length - 1} if length % self.page_tokens else set()
        needed = [
            shared | set(range(0 if window is None else max(0, last - window + 1), length))
            for window, last in (
                (window, last_seen_with(length, run)) for window, run in self.windows
            )
        ]
        possible = all(seen <= held for seen, held in zip(needed, model.held, strict=True))
        assert self.pages.can_cut(model.table, length) == possible
        if not possible:
            self.release(model)
            return
        self.pages.cut(model.table, length)
        model.length = length
        for held in model.held:
            held -= {position for position in held if self.page_of(position)[0] >= length}

    @rule(model=sequences)
    def release(self, model: Model) -> None:
        self.pages.release(model.table)
        model.length = 0
        for held in model.held:
            held.clear()

    @rule(model=consumes(sequences))
    def end(self, model: Model) -> None:
        self.release(model)
        self.models.remove(model)

    @precondition(lambda self: self.models)
    @rule()
    def tables_as_the_ops_see_them(self) -> None:
        tables = [model.table for model in self.models]
        for group in range(len(self.windows)):
            array = self.pages.table_array(tables, group)
            assert array.dtype == np.int32
            for row, model in zip(array, self.models, strict=True):
                held = {index for index, page in enumerate(row) if page != NO_PAGE}
                assert held == {p // self.page_tokens for p in model.held[group]}

    @invariant()
    def every_page_has_one_place(self) -> None:
        for group, capacity in enumerate(self.capacities):
            held = [
                page
                for model in self.models
                for page in model.table.pages[group]
                if page != NO_PAGE
            ]
            assert len(set(held)) == len(held)
            assert all(0 <= page < capacity for page in held)
            assert len(held) + self.free()[group] == capacity
            for model in self.models:
                count = len(model.held[group])
                assert model.table.held(group) * self.page_tokens == count

    def teardown(self) -> None:
        for model in getattr(self, "models", []):
            self.pages.release(model.table)
        if not hasattr(self, "capacities"):
            return
        # All pages come back, and each only once.
        assert self.free() == list(self.capacities)
        table = self.pages.new_table()
        self.pages.extend(table, min(self.capacities) * self.page_tokens)
        for pages in table.pages:
            assert len(set(pages)) == min(self.capacities)

    def free(self) -> list[int]:
        return [self.pages.free_pages(group) for group in range(len(self.capacities))]

    def page_of(self, position: int) -> range:
        """The positions that share a page with this one."""
        first = position // self.page_tokens * self.page_tokens
        return range(first, first + self.page_tokens)


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def one_group(window: int | None, capacity: int, page_tokens: int) -> PageAllocator:
    return PageAllocator((StreamGroup(1, window, ((0, 0),)),), (capacity,), page_tokens)


def test_low_pages_are_used_first_and_again() -> None:
    pages = one_group(None, capacity=4, page_tokens=2)
    first, second = pages.new_table(), pages.new_table()
    pages.extend(first, 3)
    pages.extend(second, 1)
    assert [list(table.pages[0]) for table in (first, second)] == [[0, 1], [2]]
    pages.release(first)
    pages.extend(second, 4)
    assert second.pages[0][0] == 2
    assert second.pages[0][1] in (0, 1)


def test_a_window_frees_a_page_as_soon_as_nobody_sees_it() -> None:
    pages = one_group(window=3, capacity=3, page_tokens=2)
    table = pages.new_table()
    pages.extend(table, 4)
    pages.slide(table, 3)  # position 3 sees 1, 2 and 3
    assert table.held(0) == 2
    pages.slide(table, 4)  # position 4 sees 2, 3 and 4
    assert table.pages[0][0] == NO_PAGE
    assert pages.free_pages(0) == 2


def test_a_window_of_runs_moves_by_whole_runs() -> None:
    pages = PageAllocator((StreamGroup(1, 4, ((0, 0),), run=4),), (6,), page_tokens=2)
    table = pages.new_table()
    pages.extend(table, 8)
    pages.slide(table, 7)  # position 7 is of the run from 4 to 7
    assert [page == NO_PAGE for page in table.pages[0]] == [True, True, False, False]
    pages.slide(table, 8)  # position 8 begins a run
    assert table.held(0) == 0
    pages.extend(table, 9)
    assert [pages.can_cut(table, length) for length in range(5, 10)] == [
        *(False, False, False),
        True,  # a run begins there, so nothing before is needed
        True,
    ]


def test_what_slid_away_cannot_be_cut_back_to() -> None:
    pages = one_group(window=3, capacity=3, page_tokens=2)
    table = pages.new_table()
    pages.extend(table, 6)
    pages.slide(table, 6)  # position 6 sees 4, 5 and 6: pages 0 and 1 are gone
    assert [pages.can_cut(table, length) for length in range(7)] == [
        True,  # nothing is left, so nothing is missing
        False,
        False,
        False,
        False,
        False,  # position 5 would see 3
        True,
    ]


def test_the_refusal_says_how_many_pages_there_are() -> None:
    pages = one_group(None, capacity=2, page_tokens=4)
    with pytest.raises(InsufficientMemoryError, match=r"9 tokens: 3 more.*2 of 2 are free"):
        pages.extend(pages.new_table(), 9)


@pytest.mark.parametrize("window", [None, 1, 2, 7, 16])
@pytest.mark.parametrize("page_tokens", [1, 4, 5])
@pytest.mark.parametrize("budget", [1, 3, 4, 9])
def test_pages_per_sequence_suffice_and_are_no_waste(
    window: int | None, page_tokens: int, budget: int
) -> None:
    context = 60
    capacity = pages_per_sequence(window, context, budget, page_tokens)
    most = 0
    for first_chunk in range(1, budget + 1):  # so that chunks meet pages at every offset
        pages = one_group(window, capacity, page_tokens)
        table = pages.new_table()
        start, stop = 0, first_chunk
        while start < context:
            pages.extend(table, stop)
            most = max(most, table.held(0))
            pages.slide(table, stop)
            start, stop = stop, min(stop + budget, context)
    assert most == capacity
