"""A loaded model's speed on its device: prefill, decode, and many requests at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstlight.benchmark.load import LoadResult, Record, summarise
from firstlight.benchmark.prompts import Prompt, token_prompts
from firstlight.benchmark.step_cost import StepCost, step_cost
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Progress
from firstlight.engine.sequence import Sequence as EngineSequence
from firstlight.host.ceilings import Ceilings
from firstlight.language_model import LanguageModel

_WARM_TOKENS = 32


@dataclass(frozen=True)
class Speed:
    """One figure.

    Attributes:
        name: what was measured, for people ("prefill 512").
        tokens_per_second: median of the repetitions.
        ceiling_share: the least time that the device's ceilings allow, over the time taken.
    """

    name: str
    tokens_per_second: float
    ceiling_share: float


@dataclass(frozen=True)
class Throughput:
    """Requests computed `concurrency` at a time. The share is as `Speed`'s, of the whole load."""

    concurrency: int
    result: LoadResult
    ceiling_share: float


class ModelBenchmark:
    """Measures one model. Nothing else may run on its engine meanwhile.

    Args:
        model: with state for the largest concurrency at the context of prompt and output.
        ceilings: of its device, measured just before.
        advance: called with 1 for each repetition and each request that is done.
    """

    def __init__(
        self, model: LanguageModel, ceilings: Ceilings, advance: Callable[[int], None]
    ) -> None:
        self.model = model
        self.ceilings = ceilings
        self.cost: StepCost = step_cost(model)
        self._advance = advance
        self._seed = 0

    def warm_up(self) -> None:
        """Touch every weight and compile or check whatever the first step does."""
        tokens = min(_WARM_TOKENS, self.model.engine.context_length - 1)
        self._run([self._prompt(tokens)], 2, 1)

    def prefill(self, tokens: int, repetitions: int) -> Speed:
        """From a prompt to its first token."""
        seconds = []
        for _ in range(repetitions):
            (record,) = self._run([self._prompt(tokens)], 1, 1)
            seconds.append(record.tokens_at[0] - record.arrived)
            self._advance(1)
        taken = statistics.median(seconds)
        least = self.cost.prefill_seconds(tokens, self.model.engine.token_budget, self.ceilings)
        return Speed(f"prefill {tokens}", tokens / taken, least / taken)

    def decode(self, prompt_tokens: int, output_tokens: int, repetitions: int) -> Speed:
        """One sequence's tokens after its first, from the median step."""
        gaps: list[float] = []
        for _ in range(repetitions):
            (record,) = self._run([self._prompt(prompt_tokens)], output_tokens, 1)
            pairs = zip(record.tokens_at, record.tokens_at[1:], strict=False)
            gaps += [later - earlier for earlier, later in pairs]
            self._advance(1)
        taken = statistics.median(gaps)
        context = prompt_tokens + output_tokens / 2
        least = self.cost.decode_seconds(1, context, self.ceilings)
        return Speed(f"decode after {prompt_tokens}", 1 / taken, least / taken)

    def throughput(
        self, concurrency: int, requests: int, prompt_tokens: int, output_tokens: int
    ) -> Throughput:
        """Requests of equal size, the next one coming when one ends."""
        prompts = [self._prompt(prompt_tokens) for _ in range(requests)]
        result = summarise(self._run(prompts, output_tokens, concurrency))
        at_once = min(concurrency, requests)
        budget = self.model.engine.token_budget
        least = requests * self.cost.prefill_seconds(prompt_tokens, budget, self.ceilings)
        steps = requests * (output_tokens - 1) / at_once
        context = prompt_tokens + output_tokens / 2
        least += steps * self.cost.decode_seconds(at_once, context, self.ceilings)
        return Throughput(concurrency, result, least / result.seconds)

    def _prompt(self, tokens: int) -> Prompt:
        """One that has not been used before, so that none of its state can be there already."""
        self._seed += 1
        vocabulary = self.model.spec.vocabulary_size
        return token_prompts(1, tokens, vocabulary, self._seed)[0]

    def _run(self, prompts: Sequence[Prompt], output_tokens: int, concurrency: int) -> list[Record]:
        """Every prompt continued by so many tokens, at most `concurrency` at once."""
        engine = self.model.engine
        stop = StopConditions(max_tokens=output_tokens)
        waiting = list(reversed(prompts))
        records: list[Record] = []
        live: dict[EngineSequence, Record] = {}
        try:
            while waiting or live:
                while waiting and len(live) < concurrency:
                    prompt = waiting.pop()
                    record = Record(time.monotonic(), prompt_tokens=len(prompt))
                    assert not isinstance(prompt, str)
                    live[engine.add(prompt, SamplingParameters(), stop)] = record
                    records.append(record)
                self._note(engine.step(), live)
                for sequence in [each for each in live if each.finish is not None]:
                    if sequence.error is not None:
                        raise sequence.error
                    del live[sequence]
                    self._advance(1 if len(prompts) > 1 else 0)
        finally:
            for sequence in live:
                engine.remove(sequence)
        return records

    @staticmethod
    def _note(steps: list[Progress], live: dict[EngineSequence, Record]) -> None:
        now = time.monotonic()
        for progress in steps:
            if progress.token_id is not None:
                record = live[progress.sequence]
                record.tokens_at.append(now)
                record.output_tokens += 1
                record.ended = now
