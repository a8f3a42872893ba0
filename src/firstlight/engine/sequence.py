"""A sequence: one generation in progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from firstlight.engine.pages import PageTable
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False)
class Sequence:
    """Tokens, the pages that hold their state, and what was asked.

    Attributes:
        prompt_ids: the prompt.
        token_ids: prompt and output so far.
        receive: called with each new token by whoever steps the engine; True says that a stop
            string has ended the text. None: the caller of `Engine.step` looks at what it returns.
        computed: positions whose state is written; the rest are computed by the next steps.
        length_floor: the length that rules rotary frequencies which depend on one, until the
            sequence is longer: the prompt's, or what it was when its state was last made anew.
        finish: why the sequence ended, or None while it has not.
        error: what went wrong where `finish` is "error".
        wants_logits: log probabilities are asked for, so the sampler hands the logits on.
    """

    prompt_ids: list[int]
    sampling: SamplingParameters
    stop: StopConditions
    pages: PageTable
    receive: Callable[[Progress], bool] | None = None
    computed: int = 0
    length_floor: int = 0
    finish: FinishReason | None = None
    error: FirstlightError | None = None
    wants_logits: bool = False
    output_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def pending(self) -> int:
        """Tokens whose state is not yet written."""
        return self.length - self.computed

    def cancel(self) -> None:
        """End it; the engine takes its pages back before the next step. May be called at any
        time, even while a step runs."""
        self.finish = self.finish or "cancelled"


@dataclass(frozen=True, eq=False)
class Progress:
    """What a step did for one sequence.

    Attributes:
        token_id: the token chosen, or None while the prompt is not yet computed whole, and where
            no token could be chosen (see `Sequence.error`).
        logits: float32 [vocabulary] that it was chosen from, where the sequence wants them.
    """

    sequence: Sequence
    token_id: int | None
    logits: Floats | None = None
