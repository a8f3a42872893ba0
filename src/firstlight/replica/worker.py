"""What a replica does with an engine: messages in, sequences, messages out."""

from __future__ import annotations

import time

import msgspec

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
    """Sequences of one engine by the numbers that the server gave them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._running: dict[int, _Running] = {}
        self._numbers: dict[Sequence, int] = {}
        self._prompts: list[Prompt] = []
        self._tokens: list[Token] = []
        self._refusals: list[Refusal] = []
        self._totals = Statistics()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything, or there is something to say."""
        return bool(self._running or self._refusals or self._prompts)

    def start(self, message: Start) -> None:
        """Begin a sequence; what is wrong with it is said with the next step."""
        try:
            sequence = self._add(message)
        except FirstlightError as error:
            self._refuse(message.sequence, error)
            return
        if sequence.finish is not None:  # no tokens were asked for
            self._prompts.append(Prompt(message.sequence, 0, finish=sequence.finish))
            return
        self._running[message.sequence] = _Running(sequence, message.request)
        self._numbers[sequence] = message.sequence

    def cancel(self, number: int) -> None:
        """End a sequence and free its pages now."""
        running = self._running.get(number)
        if running is not None:
            self.engine.remove(running.sequence)
            self._forget(number)

    def step(self) -> Steps:
        """Compute a step, and say what it has brought."""
        started = time.perf_counter()
        for progress in self.engine.step():
            self._report(progress)
        steps = Steps(
            self._count(time.perf_counter() - started), self._prompts, self._tokens, self._refusals
        )
        self._prompts, self._tokens, self._refusals = [], [], []
        return steps

    def statistics(self) -> Statistics:
        """The totals, and how things stand now."""
        holding = sum(any(each.sequence.pages.pages) for each in self._running.values())
        pages = self.engine.pages
        return msgspec.structs.replace(
            self._totals,
            running=holding,
            waiting=len(self._running) - holding,
            pages=sum(pages.capacities),
            free_pages=sum(pages.free_pages(group) for group in range(len(pages.groups))),
        )

    def _add(self, message: Start) -> Sequence:
        request = message.request
        sampling = SamplingParameters(**msgspec.structs.asdict(request.sampling))
        stop = StopConditions(request.max_tokens, frozenset(request.end_ids))
        wants_logits = request.log_probabilities is not None
        sequence = self.engine.add(request.prompt_ids, sampling, stop, wants_logits)
        sequence.output_ids.extend(message.output_ids)
        sequence.token_ids.extend(message.output_ids)
        return sequence

    def _report(self, progress: Progress) -> None:
        sequence = progress.sequence
        number = self._numbers.get(sequence)
        if number is None:
            return
        if sequence.error is not None:
            self._refuse(number, sequence.error)
            self._forget(number)
            return
        if progress.token_id is None:
            return
        running = self._running[number]
        if not running.prompt_said:
            running.prompt_said = True
            self._prompts.append(Prompt(number, 0))
        finish = sequence.finish if sequence.finish in ("stop", "length") else None
        self._tokens.append(
            Token(
                number,
                len(sequence.output_ids) - 1,
                progress.token_id,
                finish,
                running.score(progress.token_id, progress.logits),
            )
        )
        if finish is not None:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._numbers[self._running.pop(number).sequence]

    def _refuse(self, number: int, error: FirstlightError) -> None:
        self._refusals.append(
            Refusal(number, type(error).__name__, error.subject, error.reason, error.remedy)
        )

    def _count(self, seconds: float) -> Statistics:
        totals = self._totals
        self._totals = msgspec.structs.replace(
            totals,
            steps=totals.steps + 1,
            step_seconds=totals.step_seconds + seconds,
            output_tokens=totals.output_tokens + len(self._tokens),
            prompt_tokens=totals.prompt_tokens
            + sum(
                len(self._running[each.sequence].request.prompt_ids)
                for each in self._prompts
                if each.sequence in self._running
            ),
        )
        return self.statistics()


class _Running:
    """A sequence, what it is to be, and whether its prompt was reported."""

    def __init__(self, sequence: Sequence, request: SequenceRequest) -> None:
        self.sequence = sequence
        self.request = request
        self.prompt_said = False

    def score(self, token_id: int, logits: Floats | None) -> TokenScore | None:
        wanted = self.request.log_probabilities
        if wanted is None or logits is None:
            return None
        return score(log_probabilities(logits), token_id, wanted)


def score(values: Floats, token_id: int, wanted: int) -> TokenScore:
    """A token's log probability among `values`, float32 [vocabulary], and the likeliest ones."""
    likeliest = [
        LogProbability(int(token), float(values[token])) for token in largest(values, wanted)
    ]
    return TokenScore(float(values[token_id]), likeliest)
