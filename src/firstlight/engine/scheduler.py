"""Which tokens of which sequences the next step computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from firstlight.engine.sequence import Sequence


@dataclass(frozen=True)
class Slice:
    """Positions start:stop of one sequence."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether these are the sequence's last tokens, so that a next one can be chosen."""
        return self.stop == self.sequence.length


def plan(sequences: Iterable[Sequence], token_budget: int) -> list[Slice]:
    """Slices for one step, at most `token_budget` tokens.

    Sequences that decode (one token pending) go first, so that a long prompt beside them does
    not hold them up; what is left of the budget goes to prompts in order of arrival.
    """
    waiting = [sequence for sequence in sequences if sequence.pending]
    waiting.sort(key=lambda sequence: sequence.pending > 1)
    slices = []
    for sequence in waiting:
        count = min(sequence.pending, token_budget)
        if count == 0:
            break
        slices.append(Slice(sequence, sequence.computed, sequence.computed + count))
        token_budget -= count
    return slices
