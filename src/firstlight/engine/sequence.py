"""A sequence: one generation in progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from firstlight.engine.pages import PageTable
from firstlight.engine.parameters import SamplingParameters, StopConditions

FinishReason = Literal["stop", "length"]


@dataclass
class Sequence:
    """Tokens, the pages that hold their state, and what was asked.

    Attributes:
        token_ids: prompt and output so far.
        prompt_length: how many of them are the prompt.
        computed: positions whose state is written; the rest are computed by the next steps.
        length_floor: the length that rules rotary frequencies which depend on one, until the
            sequence is longer: the prompt's, or what it was when its state was last made anew.
        finish: why the sequence ended, or None while it has not.
        wants_logits: log probabilities are asked for, so the sampler hands the logits on.
    """

    token_ids: list[int]
    prompt_length: int
    sampling: SamplingParameters
    stop: StopConditions
    pages: PageTable
    computed: int = 0
    length_floor: int = 0
    finish: FinishReason | None = None
    wants_logits: bool = False
    output_ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def pending(self) -> int:
        """Tokens whose state is not yet written."""
        return self.length - self.computed
