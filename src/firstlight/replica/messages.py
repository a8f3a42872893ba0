"""What the server and a replica say to each other, as MessagePack (msgspec) over a socket.

A replica is told what it is to be by a `Launch` on its standard input, introduces itself on the
socket with a `Hello`, and sends `Beat` while it loads. Then the server sends `Start`, `Cancel` and
`Stop`; the replica sends `Ready` once, then `Steps` and, in between, `Beat`.

Everything about a sequence that must outlive a replica is in its `Start`: tokens that have come
already are handed to the next replica as `output_ids`, and since a next token is a pure function of
the tokens so far, parameters, seed and position, the stream goes on as if nothing had happened.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

LOAD_FAILED = 3
"""Exit code of a replica's process that has sent `Failed`."""


class ModelOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replica loads: arguments of `loading.load`, which says what they mean.

    Where None is none of an argument's own values, it leaves `load` its default.
    """

    model: str
    weights: str | None = None
    context_length: int | None = None
    sequences: int | None = None
    token_budget: int | None = None
    prompt_budget: int | None = None
    state: str = "auto"
    state_memory: int | None = None
    prefix_caching: bool = True
    speculation: Literal["auto", "off", "mtp"] | int = "auto"
    exact: bool = False
    endpoint: str | None = None
    update: bool = False
    cache: bool = True
    tune: float | None = 0.0
    graphs: bool = True


class Launch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of JSON on the standard input of a replica's process; whose end ends the process.

    Attributes:
        address: of the server's socket.
        key: goes into the `Hello`, so that no other process of this machine can pass for this one.
        cores: numbers of the processor's cores to run on; None: wherever the system likes.
    """

    address: str
    key: str
    name: str
    device: str
    options: ModelOptions
    cores: list[int] | None = None


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a replica."""

    key: str


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """`engine.parameters.SamplingParameters`, as a message."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0


class SequenceRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one sequence is to be: a prompt and how to go on from it.

    Attributes:
        prompt_ids: the prompt, in token ids.
        max_tokens: at most so many new tokens; None: until the context is full.
        end_ids: tokens that end the sequence.
        log_probabilities: give each new token's log probability and those of so many likeliest;
            None: neither.
        prompt_log_probabilities: the same for the prompt's tokens, all but the first.
        priority: sequences of a higher priority are computed first.
        tenant: prefixes are shared between sequences of one tenant only, since the time that a
            shared prefix saves would tell one tenant what another has asked.
    """

    prompt_ids: list[int]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    end_ids: list[int] = []
    log_probabilities: int | None = None
    prompt_log_probabilities: int | None = None
    priority: int = 0
    tenant: str = ""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Begin a sequence, or go on with one after `output_ids`.

    `sequence` is the server's number for it, never used twice.
    """

    sequence: int
    request: SequenceRequest
    output_ids: list[int] = []


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a sequence and free its pages; harmless where it has ended."""

    sequence: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process."""


class LogProbability(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log probability under the model, before any sampling parameter."""

    token_id: int
    log_probability: float


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token's log probability, and the likeliest tokens in its place, likeliest first."""

    log_probability: float
    likeliest: list[LogProbability]


class Token(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's next token.

    Attributes:
        index: how many output tokens came before it, replayed ones included.
        finish: "stop" (an end token, which is no part of the text), "length", or None.
        score: where log probabilities are asked for.
    """

    sequence: int
    index: int
    token_id: int
    finish: str | None = None
    score: TokenScore | None = None


class Prompt(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's prompt is computed; comes before its first token.

    Attributes:
        cached_tokens: tokens of the prompt whose state was there already.
        scores: of the prompt's tokens from the second on, where asked for.
        finish: "length" where no token is asked for, so that none will come; else None.
    """

    sequence: int
    cached_tokens: int
    scores: list[TokenScore] | None = None
    finish: str | None = None


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A sequence has ended in an error, which has the parts of a `FirstlightError`.

    Attributes:
        kind: name of the error's class; "RequestError" is the request's own fault.
    """

    sequence: int
    kind: str
    subject: str
    reason: str
    remedy: str


class Statistics(msgspec.Struct, frozen=True):
    """A replica's state and totals since it started.

    Attributes:
        running, waiting: sequences that hold pages, and those that hold none yet.
        pages, free_pages: of state; free ones may hold prefixes that could be used again.
        steps, step_seconds: computed, and the time that they took together.
        prompt_tokens, cached_tokens: taken in, and how many of those had their state already.
        output_tokens: chosen.
        preemptions: sequences whose pages were taken for others, to be computed again.
        proposed_tokens, accepted_tokens: of speculation.
    """

    TOTALS: ClassVar[tuple[str, ...]] = (
        "steps",
        "step_seconds",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "preemptions",
        "proposed_tokens",
        "accepted_tokens",
    )

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


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded.

    Attributes:
        context_length: longest sequence, in tokens.
        sequence_tokens: most tokens that one sequence can ever hold state for, where that is less.
        step_seconds: what a step with the whole token budget should take, as a warm-up had it.
    """

    context_length: int
    sequence_tokens: int
    vocabulary_size: int
    step_seconds: float = 0.0


class Steps(msgspec.Struct, frozen=True, tag="steps"):
    """What has happened since the last message: prompts first, then tokens, then refusals."""

    statistics: Statistics
    prompts: list[Prompt] = []
    tokens: list[Token] = []
    refusals: list[Refusal] = []


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Nothing to compute, or still loading, and alive."""

    statistics: Statistics = Statistics()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The model could not be loaded; the process ends. Parts of a `FirstlightError`."""

    kind: str
    subject: str
    reason: str
    remedy: str


ToReplica = Start | Cancel | Stop
FromReplica = Hello | Ready | Steps | Beat | Failed
