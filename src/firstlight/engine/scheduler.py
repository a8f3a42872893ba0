"""Which tokens of which sequences the next step computes, and who holds pages for it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from firstlight.engine.pages import PageAllocator
from firstlight.engine.prefix_cache import PrefixCache
from firstlight.engine.sequence import Sequence
from firstlight.engine.speculation import Speculator
from firstlight.engine.state_size import pages_per_sequence
from firstlight.engine.statistics import Totals

# How many of those that wait are looked at in one step.
_LOOK_AHEAD = 64


@dataclass(frozen=True, eq=False)
class Slice:
    """Positions start:stop of one sequence.

    Attributes:
        completes: these are the sequence's last tokens, so that a next one can be chosen.
        proposal: guesses for the tokens after them, computed in the same step.
    """

    sequence: Sequence
    start: int
    stop: int
    completes: bool
    proposal: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens are computed."""
        return self.stop - self.start + len(self.proposal)


class Scheduler:
    """Sequences by order, which is priority and then arrival; those that run hold pages.

    What keeps every sequence going: the first in order of those that run can take the pages of all
    others, one sequence alone fits, and nobody waits for the prefix of one behind it. So the first
    never waits, and when it ends another one is the first.

    Args:
        pages: the state.
        prefixes: what of it can be shared.
        speculator: guesses tokens for sequences that decode.
        totals: where preemptions and prompt tokens are counted.
        sequences: most that run at once.
        token_budget: most tokens of a step.
        prompt_budget: most of them that are no sequence's newest, in a step in which others decode.
        limit: most tokens of a sequence.
        replay_length: see `rope.replay_length`.
    """

    def __init__(
        self,
        pages: PageAllocator,
        prefixes: PrefixCache,
        speculator: Speculator,
        totals: Totals,
        *,
        sequences: int,
        token_budget: int,
        prompt_budget: int,
        limit: int,
        replay_length: int | None,
    ) -> None:
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._pages = pages
        self._prefixes = prefixes
        self._speculator = speculator
        self._totals = totals
        self._sequences = sequences
        self._token_budget = token_budget
        self._prompt_budget = prompt_budget
        self._limit = limit
        self._replay_length = replay_length
        self._most_pages = [
            pages_per_sequence(group.window, limit, token_budget, pages.page_tokens)
            for group in pages.groups
        ]
        # Pages that a running sequence is going to compute, by their keys.
        self._computing: dict[bytes, Sequence] = {}

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        """Take in a sequence that holds no pages."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages."""
        self._leave(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Have a sequence's state computed anew, later."""
        self._leave(sequence)
        sequence.computed = 0
        if sequence not in self.waiting:
            self.add(sequence)

    def computed(self, sequence: Sequence, *, written: bool = True) -> None:
        """Let others find the pages of a sequence that are whole now, and free what it no longer
        sees; the latter by `slide` later, where something is yet to be written there."""
        if sequence.computed // self._pages.page_tokens > sequence.pages.published:
            for index in self._prefixes.publish(sequence):
                self._computing.pop(sequence.pages.keys[index], None)
        if written:
            self.slide(sequence)

    def slide(self, sequence: Sequence) -> None:
        """Free what a sequence no longer sees."""
        self._pages.slide(sequence.pages, sequence.computed)

    def plan(self) -> list[Slice]:
        """Slices for one step, with pages for them; none only if there is no sequence.

        Sequences that decode go first, so that a long prompt beside them does not hold them up;
        what is left goes to prompts by order.
        """
        self._admit()
        slices: dict[Sequence, Slice] = {}
        left = self._plan_decoding(slices)
        if slices:
            left = min(left, self._prompt_budget)
        for sequence in [each for each in self.running if each not in slices]:
            count = min(sequence.pending, left)
            if count > 0 and self._runs(sequence):
                stop = sequence.computed + count
                if self._grow(sequence, stop, slices):
                    slices[sequence] = Slice(
                        sequence, sequence.computed, stop, stop == sequence.length
                    )
                    left -= count
        return list(slices.values())

    def _plan_decoding(self, slices: dict[Sequence, Slice]) -> int:
        """Slices of those with one token to compute; how many tokens are left of the budget."""
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        decoding = decoding[: self._token_budget]
        left = self._token_budget - len(decoding)
        for sequence in decoding:
            if not self._runs(sequence):  # its pages were taken for one before it
                continue
            start, stop = sequence.computed, sequence.length
            proposal: tuple[int, ...] = ()
            if self._speculator.enabled and left:
                room = min(left, self._room(sequence))
                proposal = self._speculator.propose(sequence, room, len(decoding))
                if not self._pages.can_extend(sequence.pages, stop + len(proposal)):
                    proposal = ()
            if self._grow(sequence, stop + len(proposal), slices):
                slices[sequence] = Slice(sequence, start, stop, True, proposal)
                left -= len(proposal)
        return left

    def _room(self, sequence: Sequence) -> int:
        """How many tokens after its newest a sequence could have state for."""
        room = self._limit - sequence.length
        if sequence.stop.max_tokens is not None:
            room = min(room, sequence.stop.max_tokens - len(sequence.output_ids) - 1)
        replay = self._replay_length
        if replay is not None and sequence.length_floor <= replay:
            room = min(room, replay - sequence.length)  # beyond, all frequencies are others
        return room

    def _grow(self, sequence: Sequence, length: int, slices: dict[Sequence, Slice]) -> bool:
        """Give a sequence pages up to a length, those of the last in order if need be; False if
        it was the last itself."""
        if self._pages.reaches(sequence.pages, length):  # as nearly always, and so it is quick
            return True
        while not self._pages.can_extend(sequence.pages, length):
            last = self.running[-1]
            slices.pop(last, None)
            self._preempt(last)
            if last is sequence:
                return False
        self._pages.extend(sequence.pages, length)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._totals.preemptions += 1
        self.restart(sequence)

    # Who begins ------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin those that wait, by order, as long as there are pages for all of their tokens."""
        index = 0
        while index < min(len(self.waiting), _LOOK_AHEAD):
            sequence = self.waiting[index]
            if self._awaits_prefix(sequence):
                index += 1
                continue
            while not self._fits(sequence):
                last = self.running[-1]
                if last.priority >= sequence.priority:
                    return  # nor may those behind it begin, lest it wait for ever
                self._preempt(last)
            self._begin(sequence)

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether the first page that a sequence lacks is going to be computed by one before it."""
        if not self._computing or sequence.receive_prompt_logits is not None:
            return False
        if sequence.awaited not in self._computing:
            count = self._prefixes.cached_pages(sequence)
            whole = (sequence.length - 1) // self._pages.page_tokens
            sequence.awaited = sequence.pages.keys[count] if count < whole else None
        owner = None if sequence.awaited is None else self._computing.get(sequence.awaited)
        return owner is not None and owner.order < sequence.order

    def _fits(self, sequence: Sequence) -> bool:
        if not self.running:
            return True
        if len(self.running) >= self._sequences:
            return False
        cached = self._prefixes.cached_pages(sequence)
        needed = self._pages.pages_of(sequence.length + 1)
        for group, (pool, most) in enumerate(zip(self._pages.pools, self._most_pages, strict=True)):
            first = self._pages.first_seen(group, cached * self._pages.page_tokens)
            pages = [pool.find(key) for key in sequence.pages.keys[first:cached]]
            held = sum(page is not None and pool.holders(page) > 0 for page in pages)
            promised = sum(
                min(
                    most,
                    max(0, self._pages.pages_of(each.length + 1) - len(each.pages.pages[group])),
                )
                for each in self.running
            )
            if min(needed - first, most) - held + promised > pool.free:
                return False
        return True

    def _begin(self, sequence: Sequence) -> None:
        count = self._prefixes.cached_pages(sequence)
        self._pages.adopt(sequence.pages, count)
        sequence.computed = count * self._pages.page_tokens
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        if self._prefixes.enabled:
            whole = sequence.length // self._pages.page_tokens
            for key in self._prefixes.keys(sequence, whole)[count:whole]:
                self._computing.setdefault(key, sequence)
        if not sequence.begun:
            sequence.begun = True
            sequence.cached_tokens = min(sequence.computed, len(sequence.prompt_ids))
            self._totals.prompt_tokens += len(sequence.prompt_ids)
            self._totals.cached_tokens += sequence.cached_tokens

    def _leave(self, sequence: Sequence) -> None:
        """Free its pages, so that it runs no longer."""
        for key in sequence.pages.keys[sequence.pages.published :]:
            if self._computing.get(key) is sequence:
                del self._computing[key]
        self._pages.release(sequence.pages)
        if sequence in self.running:
            self.running.remove(sequence)

    def _runs(self, sequence: Sequence) -> bool:
        return bool(sequence.pages.pages) and sequence in self.running


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
