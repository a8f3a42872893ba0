"""What a replica does with an engine: messages in, sequences, messages out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import msgspec

from firstlight.engine import scoring
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sampler import largest, log_probabilities
from firstlight.engine.sequence import Progress, Sequence
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats
from firstlight.replica.messages import (
    LogProbability,
    Prompt,
    Refusal,
    SequenceRequest,
    Start,
    Statistics,
    Steps,
    Token,
    TokenScore,
)


class Worker:
    """Sequences of one engine by the numbers that the server gave them.

    What the engine has done before it had a worker is in no statistics.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._running: dict[Sequence, _Running] = {}
        self._sequences: dict[int, Sequence] = {}
        self._prompts: list[Prompt] = []
        self._tokens: list[Token] = []
        self._refusals: list[Refusal] = []
        self._before = asdict(engine.statistics())

    @property
    def busy(self) -> bool:
        """Whether there is something to compute, or to say."""
        return bool(self._running or self._refusals or self._prompts)

    def start(self, message: Start) -> None:
        """Begin a sequence; what is wrong with it is said with the next step."""
        running = _Running(message.sequence, message.request, len(message.output_ids))
        try:
            sequence = self._add(message, running)
        except FirstlightError as error:
            self._refuse(message.sequence, error)
            return
        if sequence.finish is not None:  # no tokens were asked for
            self._prompts.append(Prompt(message.sequence, 0, finish=sequence.finish))
            return
        self._running[sequence] = running
        self._sequences[message.sequence] = sequence

    def cancel(self, number: int) -> None:
        """End a sequence and free its pages now."""
        sequence = self._sequences.get(number)
        if sequence is not None:
            self.engine.remove(sequence)
            self._forget(sequence)

    def step(self) -> Steps | None:
        """Compute a step, and say what it has brought; None where there was nothing to compute."""
        computed = self.engine.step()
        if not (computed or self._refusals or self._prompts):
            return None
        for progress in computed:
            self._report(progress)
        steps = Steps(self.statistics(), self._prompts, self._tokens, self._refusals)
        self._prompts, self._tokens, self._refusals = [], [], []
        return steps

    def check(self) -> None:
        """DeviceError where the engine can compute nothing any more."""
        self.engine.decoder.check()

    def statistics(self) -> Statistics:
        """How things stand, and the totals."""
        now = asdict(self.engine.statistics())
        for name in Statistics.TOTALS:
            now[name] -= self._before[name]
        return Statistics(**now)

    def _add(self, message: Start, running: _Running) -> Sequence:
        request = message.request
        return self.engine.add(
            request.prompt_ids,
            SamplingParameters(**msgspec.structs.asdict(request.sampling)),
            StopConditions(request.max_tokens, frozenset(request.end_ids)),
            output_ids=message.output_ids,
            priority=request.priority,
            tenant=request.tenant,
            wants_scores=request.log_probabilities,
            receive_prompt_logits=(
                None if request.prompt_log_probabilities is None else running.receive_prompt_logits
            ),
        )

    def _report(self, progress: Progress) -> None:
        sequence = progress.sequence
        running = self._running.get(sequence)
        if running is None:
            return
        if sequence.error is not None:
            self._refuse(running.number, sequence.error)
            self._forget(sequence)
            return
        if progress.token_id is not None:
            self._report_prompt(running, sequence, None)
            # Several tokens may have come in one step; the sequence ends with the last.
            index, running.told = running.told, running.told + 1
            last = running.told == len(sequence.output_ids)
            self._tokens.append(
                Token(
                    running.number,
                    index,
                    progress.token_id,
                    sequence.finish if last else None,
                    _message(progress.score),
                )
            )
        elif sequence.finish == "length":  # only the prompt was asked for
            self._report_prompt(running, sequence, "length")
        if sequence.finish is not None and running.told == len(sequence.output_ids):
            self._forget(sequence)

    def _report_prompt(self, running: _Running, sequence: Sequence, finish: str | None) -> None:
        if not running.prompt_told:
            running.prompt_told = True
            scores = running.prompt_scores
            self._prompts.append(Prompt(running.number, sequence.cached_tokens, scores, finish))
            running.prompt_scores = None

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[self._running.pop(sequence).number]

    def _refuse(self, number: int, error: FirstlightError) -> None:
        self._refusals.append(
            Refusal(number, type(error).__name__, error.subject, error.reason, error.remedy)
        )


@dataclass
class _Running:
    """A sequence's number, what it is to be, and what of it was told.

    Attributes:
        told: tokens that the server has, those of other replicas among them.
    """

    number: int
    request: SequenceRequest
    told: int
    prompt_told: bool = False
    prompt_scores: list[TokenScore] | None = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_scores = None if self.request.prompt_log_probabilities is None else []

    def receive_prompt_logits(self, position: int, logits: Floats) -> None:
        """Score the tokens of the prompt that come after these rows."""
        wanted, scores = self.request.prompt_log_probabilities, self.prompt_scores
        assert wanted is not None and scores is not None
        following = self.request.prompt_ids[position + 1 : position + 1 + len(logits)]
        for row, token in zip(logits, following, strict=False):
            scores.append(score(log_probabilities(row), token, wanted))


def _message(score: scoring.TokenScore | None) -> TokenScore | None:
    if score is None:
        return None
    return TokenScore(score.log_probability, [LogProbability(*each) for each in score.likeliest])


def score(values: Floats, token_id: int, wanted: int) -> TokenScore:
    """A token's log probability among `values`, float32 [vocabulary], and the likeliest ones."""
    likeliest = [
        LogProbability(int(token), float(values[token])) for token in largest(values, wanted)
    ]
    return TokenScore(float(values[token_id]), likeliest)
