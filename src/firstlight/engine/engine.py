"""The engine: sequences in, tokens out, a step at a time."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sampler import sample
from firstlight.engine.scheduler import Slice, plan
from firstlight.engine.sequence import Sequence
from firstlight.errors import RequestError
from firstlight.formats.base import Floats
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder
from firstlight.model.rope import replay_length

PAGE_TOKENS = 64


@dataclass(frozen=True)
class Progress:
    """What a step did for one sequence.

    Attributes:
        token_id: the token chosen, or None while the prompt is not yet computed whole.
        logits: float32 [vocabulary] that it was chosen from, where the sequence wants them.
    """

    sequence: Sequence
    token_id: int | None
    logits: Floats | None


class Engine:
    """Runs sequences on one decoder.

    Args:
        context_length: longest sequence, in tokens.
        sequences: how many of that length there is state for at once.
        token_budget: most tokens of one step; longer prompts are computed in chunks.
        state_dtype: "float32" or "bfloat16".
    """

    def __init__(
        self,
        decoder: Decoder,
        context_length: int,
        sequences: int = 1,
        token_budget: int = 512,
        state_dtype: str = "float32",
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        self.decoder = decoder
        self.context_length = context_length
        self.token_budget = token_budget
        capacities = tuple(
            sequences * pages_per_sequence(group.window, context_length, token_budget, page_tokens)
            for group in decoder.groups
        )
        self.pages = PageAllocator(decoder.groups, capacities, page_tokens)
        self._state = decoder.new_state(capacities, page_tokens, state_dtype)
        self._sequences: list[Sequence] = []
        self._replay_length = replay_length(decoder.spec)

    def add(
        self,
        prompt_ids: Items[int],
        sampling: SamplingParameters,
        stop: StopConditions,
        wants_logits: bool = False,
    ) -> Sequence:
        """Take in a sequence.

        Raises:
            RequestError: the prompt is empty, too long, or has ids outside the vocabulary.
        """
        self.check_prompt(prompt_ids)
        sequence = Sequence(
            token_ids=[int(token) for token in prompt_ids],
            prompt_length=len(prompt_ids),
            sampling=sampling,
            stop=stop,
            pages=self.pages.new_table(),
            length_floor=len(prompt_ids),
            wants_logits=wants_logits,
        )
        if stop.max_tokens == 0:
            sequence.finish = "length"
        else:
            self._sequences.append(sequence)
        return sequence

    def check_prompt(self, prompt_ids: Items[int]) -> None:
        """RequestError if a prompt cannot be computed here."""
        vocabulary = self.decoder.spec.vocabulary_size
        if not len(prompt_ids):
            raise RequestError("prompt", "has no tokens", "Give at least one token")
        if len(prompt_ids) > self.context_length:
            raise RequestError(
                "prompt",
                f"has {len(prompt_ids)} tokens, and the context holds {self.context_length}",
                "Shorten it, or load the model with a larger context_length",
            )
        for token in prompt_ids:
            if not 0 <= token < vocabulary:
                raise RequestError(
                    f"prompt token {token}",
                    f"the vocabulary has ids 0 to {vocabulary - 1}",
                    "Encode the prompt with this model's tokenizer",
                )

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence and free its pages at once; harmless if it is gone already."""
        self.pages.release(sequence.pages)
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def step(self) -> list[Progress]:
        """Compute the next tokens of the sequences there are; empty when there are none."""
        slices = plan(self._sequences, self.token_budget)
        if not slices:
            return []
        logits = self._compute(slices, [1 if part.completes else 0 for part in slices])
        rows = iter(logits)
        return [self._advance(part, next(rows) if part.completes else None) for part in slices]

    def logits(self, token_ids: Items[int]) -> Floats:
        """Logits after every token: float32 [tokens, vocabulary].

        Raises:
            RequestError: as `add`.
        """
        self.check_prompt(token_ids)
        sequence = Sequence(
            [int(token) for token in token_ids],
            len(token_ids),
            SamplingParameters(),
            StopConditions(),
            self.pages.new_table(),
            length_floor=len(token_ids),
        )
        out = np.empty((len(token_ids), self.decoder.spec.vocabulary_size), np.float32)
        try:
            while sequence.pending:
                start = sequence.computed
                (part,) = plan([sequence], self.token_budget)
                out[start : part.stop] = self._compute([part], [part.stop - start])
        finally:
            self.pages.release(sequence.pages)
        return out

    def _compute(self, slices: list[Slice], wanted: list[int]) -> Floats:
        """Run the decoder over the slices; logits of the last `wanted[i]` tokens of slice i."""
        for part in slices:
            self.pages.extend(part.sequence.pages, part.stop)
        batch = self._batch(slices, wanted)
        logits = self.decoder.ops.download(self.decoder.step(batch, self._state))
        for part in slices:
            part.sequence.computed = part.stop
            self.pages.slide(part.sequence.pages, part.stop)
        return logits

    def _batch(self, slices: list[Slice], wanted: list[int]) -> Batch:
        counts = [part.stop - part.start for part in slices]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        token_ids = [t for part in slices for t in part.sequence.token_ids[part.start : part.stop]]
        positions = [position for part in slices for position in range(part.start, part.stop)]
        floors = np.repeat([part.sequence.length_floor for part in slices], counts)
        return Batch(
            token_ids=np.asarray(token_ids, np.int32),
            positions=np.asarray(positions, np.int32),
            lengths=np.maximum(floors, np.asarray(positions) + 1).astype(np.int32),
            row_starts=starts,
            page_tables=tuple(
                self.pages.table_array([part.sequence.pages for part in slices], group)
                for group in range(len(self.pages.groups))
            ),
            page_tokens=self.pages.page_tokens,
            wanted=np.concatenate(
                [
                    np.arange(stop - count, stop, dtype=np.int32)
                    for stop, count in zip(starts[1:], wanted, strict=True)
                ]
            ),
        )

    def _advance(self, part: Slice, logits: Floats | None) -> Progress:
        sequence = part.sequence
        if logits is None:
            return Progress(sequence, None, None)
        prompt, output = sequence.token_ids[: sequence.prompt_length], sequence.output_ids
        token = sample(logits, sequence.sampling, prompt, output, sequence.length)
        sequence.token_ids.append(token)
        sequence.output_ids.append(token)
        if token in sequence.stop.end_ids:
            sequence.finish = "stop"
        elif len(output) == sequence.stop.max_tokens or sequence.length > self.context_length:
            sequence.finish = "length"
        if sequence.finish is not None:
            self.remove(sequence)
        elif self._must_replay(sequence):
            self.pages.release(sequence.pages)
            sequence.computed, sequence.length_floor = 0, sequence.length
        return Progress(sequence, token, logits if sequence.wants_logits else None)

    def _must_replay(self, sequence: Sequence) -> bool:
        limit = self._replay_length
        return limit is not None and sequence.length_floor <= limit < sequence.length


def pages_per_sequence(
    window: int | None, context_length: int, token_budget: int, page_tokens: int
) -> int:
    """Pages of a stream group that one sequence can hold at once.

    A window needs its own entries, those of the chunk being computed, and one page more at either
    end for positions that do not fall on page boundaries.
    """
    whole = -(-context_length // page_tokens)
    if window is None:
        return whole
    return min(whole, -(-(window + token_budget) // page_tokens) + 1)
