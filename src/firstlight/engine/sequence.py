"""A sequence: one generation in progress."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from firstlight.engine.pages import PageTable
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.scoring import TokenScore
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats

FinishReason = Literal["stop", "length", "cancelled", "error"]

# Given the output so far, which tokens may come next: bool [vocabulary], or None for all. A pure
# function, since tokens may be asked for again; this is where structured output has its place.
AllowedTokens = Callable[[Items[int]], NDArray[np.bool_] | None]

# Given a position and logits float32 [rows, vocabulary] after the prompt's tokens from there on.
ReceivePromptLogits = Callable[[int, Floats], None]


@dataclass(eq=False)
class Sequence:
    """Tokens, the pages that hold their state, and what was asked.

    Attributes:
        prompt_ids: the prompt.
        output_ids: new tokens so far, those that were given at the start among them.
        token_ids: prompt and output so far.
        receive: called with each new token by whoever steps the engine; True says that a stop
            string has ended the text. None: the caller of `Engine.step` looks at what it returns.
        receive_prompt_logits: called with the logits after each token of the prompt, some rows at
            a time, in order and each once; None: they are not computed.
        allowed: which tokens may be chosen; None: all.
        priority: higher ones are computed first.
        tenant: state is shared between sequences of one tenant only.
        arrival: how many came before it.
        computed: positions whose state is written; the rest are computed by the next steps.
        cached_tokens: tokens of the prompt whose state was there already when it was begun.
        length_floor: the length that rules rotary frequencies which depend on one, until the
            sequence is longer: the prompt's, or what it was when its state was last made anew.
        finish: why the sequence ended, or None while it has not.
        error: what went wrong where `finish` is "error".
        wants_logits: each new token comes with the logits that it was chosen from.
        wants_scores: each new token comes with its log probability and those of so many likeliest;
            None: it does not.
        prompt_logits_given: tokens whose logits `receive_prompt_logits` has had.
        begun: it has held pages.
        awaited: key of a page that another sequence is to compute first.
    """

    prompt_ids: list[int]
    sampling: SamplingParameters
    stop: StopConditions
    pages: PageTable
    output_ids: list[int] = field(default_factory=list)
    receive: Callable[[Progress], bool] | None = None
    receive_prompt_logits: ReceivePromptLogits | None = None
    allowed: AllowedTokens | None = None
    priority: int = 0
    tenant: str = ""
    arrival: int = 0
    computed: int = 0
    cached_tokens: int = 0
    length_floor: int = 0
    finish: FinishReason | None = None
    error: FirstlightError | None = None
    wants_logits: bool = False
    wants_scores: int | None = None
    token_ids: list[int] = field(init=False)
    prompt_logits_given: int = 0
    begun: bool = False
    awaited: bytes | None = None

    def __post_init__(self) -> None:
        self.token_ids = [*self.prompt_ids, *self.output_ids]

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def pending(self) -> int:
        """Tokens whose state is not yet written."""
        return len(self.token_ids) - self.computed

    @property
    def order(self) -> tuple[int, int]:
        """Sequences are served by rising order: by priority, then by arrival."""
        return -self.priority, self.arrival

    def cancel(self) -> None:
        """End it; the engine takes its pages back before the next step. May be called at any
        time, even while a step runs."""
        self.finish = self.finish or "cancelled"


@dataclass(frozen=True, eq=False)
class Progress:
    """What a step did for one sequence.

    Attributes:
        token_id: a token chosen, or None while the prompt is not yet computed whole, and where
            no token could be chosen (see `Sequence.error`).
        logits: float32 [vocabulary] that it was chosen from, where the sequence wants them.
        score: of the token, where the sequence wants it.
    """

    sequence: Sequence
    token_id: int | None
    logits: Floats | None = None
    score: TokenScore | None = None
