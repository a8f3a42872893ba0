"""What an engine has done, and how full it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatistics:
    """An engine's state and totals since it was made.

    Attributes:
        running, waiting: sequences that hold pages, and those that hold none.
        pages, free_pages: of state, all stream groups together; free ones may hold prefixes that
            could be used again.
        steps, step_seconds: computed, and the time that they took together.
        prompt_tokens, cached_tokens: taken in, and how many of those had their state already.
        output_tokens: chosen.
        preemptions: sequences whose pages were taken for others, to be computed again.
        proposed_tokens, accepted_tokens: of speculation.
    """

    running: int = 0
    waiting: int = 0
    pages: int = 0
    free_pages: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass
class Totals:
    """The totals of `EngineStatistics`, as they are counted."""

    steps: int = 0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
