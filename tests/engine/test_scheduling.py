"""Scheduler, pages and prefixes in any order of events, without a model: no page is lost or used
twice, what a page is said to hold was computed into it, and every sequence ends."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from firstlight.engine.pages import NO_PAGE, PageAllocator
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.prefix_cache import PrefixCache
from firstlight.engine.scheduler import Scheduler, Slice
from firstlight.engine.sequence import Sequence
from firstlight.engine.speculation import Speculator
from firstlight.engine.state_size import longest_sequence
from firstlight.engine.statistics import Totals
from firstlight.model.stream import StreamGroup

PAGE_TOKENS = 2
TOKENS = 3  # so few that sequences often begin alike
# Prompts that sequences are forked from.
TRUNKS = ((0, 1, 2, 0, 1, 2, 2, 2), (0, 1, 2, 0, 1, 1), (2,))


class FakeSpec:
    """A model whose rope does not depend on lengths."""

    def ropes(self) -> list[Any]:
        return []


class Scheduling(RuleBasedStateMachine):
    """A page's contents are the tokens that it was computed from, all that came before included."""

    @initialize(
        windows=st.lists(st.sampled_from((None, 1, 2, 3, 5)), min_size=1, max_size=3, unique=True),
        capacity=st.integers(4, 14),
        sequences=st.integers(1, 5),
        token_budget=st.integers(1, 12),
        prompt_budget=st.integers(1, 6),
        speculation=st.sampled_from(("off", "auto", "mtp", 3)),
        caching=st.booleans(),
    )
    def create(
        self,
        windows: list[int | None],
        capacity: int,
        sequences: int,
        token_budget: int,
        prompt_budget: int,
        speculation: Any,
        caching: bool,
    ) -> None:
        self.groups = tuple(
            StreamGroup(1, window, ((index, 0),)) for index, window in enumerate(windows)
        )
        # Unequal, so that now one group runs out first and now another.
        self.capacities = tuple(capacity + 2 * index for index in range(len(windows)))
        self.limit = longest_sequence(self.groups, self.capacities, 24, token_budget, PAGE_TOKENS)
        self.token_budget, self.prompt_budget = token_budget, prompt_budget
        self.pages = PageAllocator(self.groups, self.capacities, PAGE_TOKENS)
        self.totals = Totals()
        spec: Any = FakeSpec()
        self.speculator = Speculator(speculation)
        self.scheduler = Scheduler(
            self.pages,
            PrefixCache(spec, self.pages, caching),
            self.speculator,
            self.totals,
            sequences=sequences,
            token_budget=token_budget,
            prompt_budget=prompt_budget,
            limit=self.limit,
            replay_length=None,
        )
        self.most = sequences
        self.sequences: list[Sequence] = []
        self.ended: list[Sequence] = []
        # (group, page) -> for each slot the tokens up to it that its state was computed from.
        self.contents: dict[tuple[int, int], list[tuple[int, ...] | None]] = {}

    # What may happen ---------------------------------------------------------------------------

    @rule(
        trunk=st.sampled_from(TRUNKS),
        branch=st.lists(st.integers(0, TOKENS - 1), max_size=8),
        copies=st.integers(1, 3),
        priority=st.integers(0, 2),
        tenant=st.sampled_from(("", "other")),
        max_tokens=st.integers(1, 12),
        whole_prompt=st.booleans(),
    )
    def add(
        self,
        trunk: tuple[int, ...],
        branch: list[int],
        copies: int,
        priority: int,
        tenant: str,
        max_tokens: int,
        whole_prompt: bool,
    ) -> None:
        prompt = [*trunk, *branch][: max(1, self.limit)]
        for _ in range(copies if self.limit else 0):
            sequence = Sequence(
                prompt,
                SamplingParameters(),
                StopConditions(max_tokens=max_tokens),
                self.pages.new_table(),
                priority=priority,
                tenant=tenant,
                arrival=len(self.sequences) + len(self.ended),
            )
            if whole_prompt:
                sequence.receive_prompt_logits = lambda *_: None
            self.sequences.append(sequence)
            self.scheduler.add(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.cancel()
        self._end(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def have_computed_anew(self, data: st.DataObject) -> None:
        self.scheduler.restart(data.draw(st.sampled_from(self.sequences)))

    @rule()
    def step(self) -> None:
        slices = self.scheduler.plan()
        assert bool(slices) == bool(self.sequences)
        self._check_plan(slices)
        for part in slices:
            self._compute(part)
        for part in slices:
            self._choose(part)

    @precondition(lambda self: self.sequences)
    @rule()
    def interrupted_step(self) -> None:
        for part in self.scheduler.plan():
            self._compute(part)

    # A model of a step ---------------------------------------------------------------------------

    def _check_plan(self, slices: list[Slice]) -> None:
        assert len({part.sequence for part in slices}) == len(slices)
        assert sum(part.tokens for part in slices) <= self.token_budget
        assert len(self.scheduler.running) <= self.most
        prompts = [part for part in slices if part.stop - part.start > 1 or not part.completes]
        if len(prompts) < len(slices):
            assert sum(part.tokens for part in prompts) <= self.prompt_budget
            # Every sequence that decodes gets its token, as far as the budget goes.
            decoding = [each for each in self.scheduler.running if each.pending == 1]
            assert len(slices) - len(prompts) == min(len(decoding), self.token_budget)
        for part in slices:
            assert part.start == part.sequence.computed < part.stop <= part.sequence.length
            assert part.sequence in self.scheduler.running

    def _compute(self, part: Slice) -> None:
        tokens = [*part.sequence.token_ids[: part.stop], *part.proposal]
        for position in range(part.start, len(tokens)):
            for group in range(len(self.groups)):
                page = part.sequence.pages.pages[group][position // PAGE_TOKENS]
                assert not self.pages.pools[group].shared(page), "a shared page is written"
                slots = self.contents.setdefault((group, page), [None] * PAGE_TOKENS)
                slots[position % PAGE_TOKENS] = tuple(tokens[: position + 1])
        for position in range(part.start, part.stop):
            self._check_seen(part.sequence, position)

    def _check_seen(self, sequence: Sequence, position: int) -> None:
        """What a token sees is the state of the tokens before it."""
        for group, spec in enumerate(self.groups):
            first = 0 if spec.window is None else max(0, position - spec.window + 1)
            for seen in range(first, position + 1):
                page = sequence.pages.pages[group][seen // PAGE_TOKENS]
                assert page != NO_PAGE
                expected = tuple(sequence.token_ids[: seen + 1])
                assert self.contents[group, page][seen % PAGE_TOKENS] == expected

    def _choose(self, part: Slice) -> None:
        sequence = part.sequence
        if not part.completes:
            sequence.computed = part.stop
            self.scheduler.computed(sequence)
            return
        for guess in (*part.proposal, None):
            # The next token is a pure function of those before it.
            token = (sum(sequence.token_ids[-3:]) + sequence.length // 5) % TOKENS
            sequence.token_ids.append(token)
            sequence.output_ids.append(token)
            sequence.computed = sequence.length - 1
            self.scheduler.computed(sequence)
            if len(sequence.output_ids) == sequence.stop.max_tokens or sequence.length > self.limit:
                sequence.finish = "length"
            if sequence.finish is not None or token != guess:
                break
        if part.proposal:
            right = len(sequence.output_ids) % 2
            self.speculator.learn(sequence, len(part.proposal), right * len(part.proposal))
        if sequence.finish is not None:
            self._end(sequence)
        elif part.proposal:
            self.pages.cut(sequence.pages, sequence.length)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.sequences.remove(sequence)
        self.ended.append(sequence)
        assert not any(sequence.pages.pages), "pages are free at once"

    # What must hold ------------------------------------------------------------------------------

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if not hasattr(self, "pages"):
            return
        for group, pool in enumerate(self.pages.pools):
            held: dict[int, int] = {}
            for sequence in self.sequences:
                for page in sequence.pages.pages[group]:
                    if page != NO_PAGE:
                        held[page] = held.get(page, 0) + 1
            assert {page: pool.holders(page) for page in held} == held
            assert len(held) + pool.free == pool.capacity

    @invariant()
    def sequences_run_or_wait_in_order(self) -> None:
        if not hasattr(self, "pages"):
            return
        assert set(self.scheduler) == set(self.sequences)
        assert len(list(self.scheduler)) == len(self.sequences)
        for queue in (self.scheduler.running, self.scheduler.waiting):
            assert all(first.order < second.order for first, second in pairwise(queue))
        assert not any(any(each.pages.pages) for each in self.scheduler.waiting)

    @invariant()
    def what_can_be_found_is_what_its_key_says(self) -> None:
        if not hasattr(self, "pages"):
            return
        for sequence in self.sequences:
            for index, key in enumerate(sequence.pages.keys):
                tokens = tuple(sequence.token_ids[: (index + 1) * PAGE_TOKENS])
                for group, pool in enumerate(self.pages.pools):
                    page = pool.find(key)
                    if page is not None:
                        assert self.contents[group, page][-1] == tokens

    def teardown(self) -> None:
        if not hasattr(self, "pages"):
            return
        for _ in range(2000):
            if not self.sequences:
                break
            self.step()
        assert not self.sequences, "a sequence never ends"
        for pool in self.pages.pools:
            assert pool.free == pool.capacity
            taken = [pool.take() for _ in range(pool.capacity)]
            assert len(set(taken)) == pool.capacity
            assert pool.cached == 0


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def make(
    capacity: int = 8, sequences: int = 4, windows: tuple[int | None, ...] = (None,), **options: Any
) -> SimpleNamespace:
    """A scheduler with budgets that never matter."""
    groups = tuple(StreamGroup(1, window, ((index, 0),)) for index, window in enumerate(windows))
    pages = PageAllocator(groups, (capacity,) * len(groups), PAGE_TOKENS)
    totals, spec = Totals(), FakeSpec()
    scheduler = Scheduler(
        pages,
        PrefixCache(spec, pages),  # type: ignore[arg-type]
        Speculator("off"),
        totals,
        sequences=sequences,
        **{
            "token_budget": 100,
            "prompt_budget": 100,
            "limit": 16,
            "replay_length": None,
            **options,
        },
    )
    arrivals = iter(range(1000))

    def add(prompt: list[int], **more: Any) -> Sequence:
        sequence = Sequence(
            prompt,
            SamplingParameters(),
            StopConditions(),
            pages.new_table(),
            arrival=next(arrivals),
            **more,
        )
        scheduler.add(sequence)
        return sequence

    def step() -> list[Sequence]:
        slices = scheduler.plan()
        for part in slices:
            part.sequence.computed = part.stop
            scheduler.computed(part.sequence)
            if part.completes:
                part.sequence.token_ids.append(0)
        return [part.sequence for part in slices]

    return SimpleNamespace(pages=pages, scheduler=scheduler, totals=totals, add=add, step=step)


def test_one_that_wants_a_prefix_waits_until_it_is_computed() -> None:
    it = make(prompt_budget=2, token_budget=4)
    first, second = it.add([1] * 7), it.add([1] * 7)
    assert [it.step(), it.step(), it.step()] == [[first], [first], [first, second]]
    assert (first.computed, second.cached_tokens, second.computed) == (8, 6, 7)
    assert second.pages.pages[0][:3] == first.pages.pages[0][:3]


def test_one_that_waits_for_a_prefix_goes_on_when_the_other_is_cancelled() -> None:
    it = make(token_budget=2)
    first, second = it.add([1] * 7), it.add([1] * 7)
    assert it.step() == [first]
    it.scheduler.remove(first)
    assert it.step() == [second]
    assert second.cached_tokens == 2  # what the first had computed is of use


def test_higher_priority_waits_for_no_lower_one() -> None:
    it = make(token_budget=4)
    low = it.add([1] * 7)
    assert it.step() == [low]
    high = it.add([1] * 7, priority=1)
    assert it.step() == [high, low]
    assert (high.cached_tokens, high.computed) == (
        4,
        7,
    )  # with two pages of the lower one


def test_another_tenants_prefix_is_not_found() -> None:
    it = make()
    first = it.add([1] * 5, tenant="a")
    it.step()
    second, third = it.add([1] * 5, tenant="b"), it.add([1] * 5, tenant="a")
    it.step()
    assert (first.cached_tokens, second.cached_tokens, third.cached_tokens) == (0, 0, 4)


def test_the_last_of_the_lowest_priority_gives_way() -> None:
    it = make(capacity=7, sequences=3)
    low = [it.add([index] * 3) for index in range(2)]
    it.step()
    high = it.add([2] * 7, priority=1)
    assert set(it.step()) == {low[0], high}
    assert it.scheduler.waiting == [low[1]]
    assert it.totals.preemptions == 1


def test_later_ones_do_not_overtake_one_that_lacks_pages() -> None:
    it = make(capacity=6)
    it.add([0] * 6)
    it.step()
    large, small = it.add([1] * 9), it.add([2])
    for _ in range(3):
        it.step()
    assert it.scheduler.waiting == [large, small]


def test_the_prefix_used_last_is_freed_last() -> None:
    it = make(capacity=8)
    for token in (1, 2, 1):
        sequence = it.add([token] * 4 + [0])
        it.step()
        it.scheduler.remove(sequence)
    it.scheduler.remove(it.add([0]))
    filler = it.add([3] * 9)  # takes five pages: four blank ones, and the oldest
    it.step()
    it.scheduler.remove(filler)
    again = [it.add([token] * 4 + [0]) for token in (1, 2)]
    it.step()
    assert [each.cached_tokens for each in again] == [4, 2]


def test_a_sliding_group_needs_the_pages_of_its_window_only() -> None:
    it = make(capacity=8, windows=(None, 3), token_budget=2)
    first = it.add([1] * 9)
    for _ in range(5):
        it.step()
    # Of the sliding group's pages those of positions 0 to 3 are let go first, and used again.
    it.pages.pools[1].withdraw(taken := it.pages.pools[1].find(first.pages.keys[0]) or 0)
    assert taken not in first.pages.pages[1]
    second = it.add([1] * 9)
    it.step()
    assert second.cached_tokens == 8
    assert list(second.pages.pages[1][:3]) == [NO_PAGE] * 3
