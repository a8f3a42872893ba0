"""The engine: sequences in, tokens out, a step at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from collections.abc import Sequence as Items

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.parameters import (
    SamplingParameters,
    StopConditions,
    check_whole,
)
from firstlight.engine.sampler import check_logit_bias, sample
from firstlight.engine.scheduler import Slice, plan
from firstlight.engine.sequence import Progress, Sequence
from firstlight.errors import FirstlightError, RequestError
from firstlight.formats.base import Floats
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder
from firstlight.model.rope import replay_length
from firstlight.model.stream import VALUE_BYTES

PAGE_TOKENS = 64
TOKEN_BUDGET = 512


class Engine:
    """Runs sequences on one decoder.

    There is state for so many sequences of the full context length; further ones wait, in order
    of arrival, until one of those ends or is removed. So state never runs out half-way.

    Args:
        context_length: longest sequence, in tokens.
        sequences: how many of that length there is state for at once.
        token_budget: most tokens of one step; longer prompts are computed in chunks.
        state_dtype: "float32" or "bfloat16".

    Raises:
        RequestError: one of these is out of range.
    """

    def __init__(
        self,
        decoder: Decoder,
        context_length: int,
        sequences: int = 1,
        token_budget: int = TOKEN_BUDGET,
        state_dtype: str = "float32",
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        check_options(context_length, sequences, token_budget, state_dtype)
        self.decoder = decoder
        self.context_length = context_length
        self.token_budget = token_budget
        self.state_dtype = state_dtype
        capacities = tuple(
            sequences * pages_per_sequence(group.window, context_length, token_budget, page_tokens)
            for group in decoder.groups
        )
        self.pages = PageAllocator(decoder.groups, capacities, page_tokens)
        self._state = decoder.new_state(capacities, page_tokens, state_dtype)
        self._slots = sequences
        self._sequences: list[Sequence] = []  # the first `_slots` run, the others wait
        self._replay_length = replay_length(decoder.spec)

    def add(
        self,
        prompt_ids: Items[int],
        sampling: SamplingParameters,
        stop: StopConditions,
        wants_logits: bool = False,
        receive: Callable[[Progress], bool] | None = None,
    ) -> Sequence:
        """Take in a sequence; see `Sequence` for `wants_logits` and `receive`.

        Raises:
            RequestError: the prompt is empty, too long, or has ids outside the vocabulary; or
                logit_bias has.
        """
        check_logit_bias(sampling, self.decoder.spec.vocabulary_size)
        sequence = self._new_sequence(prompt_ids, sampling, stop)
        sequence.wants_logits, sequence.receive = wants_logits, receive
        if stop.max_tokens == 0:
            sequence.finish = "length"
        else:
            self._sequences.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """End a sequence and free its pages at once; harmless if it has ended already.

        Not while a step runs: `Sequence.cancel` is for that.
        """
        sequence.cancel()
        self.pages.release(sequence.pages)
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def step(self) -> list[Progress]:
        """Compute the next tokens of the sequences there are; empty when there are none.

        What goes wrong with one sequence alone ends that one, see `Sequence.error`. After an
        exception every sequence stands where it stood before the step, or where the step would
        have brought it, and can go on.
        """
        self._remove_ended()
        slices = plan(self._sequences[: self._slots], self.token_budget)
        if not slices:
            return []
        rows = iter(self._compute(slices, [1 if part.completes else 0 for part in slices]))
        return [self._advance(part, next(rows) if part.completes else None) for part in slices]

    def logits(self, token_ids: Items[int]) -> Floats:
        """Logits after every token: float32 [tokens, vocabulary].

        Where there is no state for one more sequence, those that came before are run to their
        end first.

        Raises:
            RequestError: as `add`.
        """
        token_ids = self._checked(token_ids)
        out = np.empty((len(token_ids), self.decoder.spec.vocabulary_size), np.float32)
        done = 0
        for chunk in self.logits_in_chunks(token_ids):
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
        return out

    def logits_in_chunks(self, token_ids: Items[int]) -> Generator[Floats, None, None]:
        """The same a step at a time, for who cannot hold them all: at most token_budget rows each.

        Nothing else may run on this engine before the last chunk has come or the iterator was
        closed.
        """
        sequence = self._new_sequence(token_ids, SamplingParameters(), StopConditions())
        self._remove_ended()
        while len(self._sequences) >= self._slots:
            self.step()
        try:
            while sequence.pending:
                (part,) = plan([sequence], self.token_budget)
                logits = self._compute([part], [part.stop - part.start])
                self._mark_computed(part)
                yield logits
        finally:
            self.pages.release(sequence.pages)

    def _new_sequence(
        self, prompt_ids: Items[int], sampling: SamplingParameters, stop: StopConditions
    ) -> Sequence:
        token_ids = self._checked(prompt_ids)
        return Sequence(
            token_ids,
            sampling,
            stop,
            self.pages.new_table(),
            length_floor=len(token_ids),
        )

    def _checked(self, prompt_ids: Items[int]) -> list[int]:
        """The prompt; RequestError if it cannot be computed here."""
        if not len(prompt_ids):
            raise RequestError("prompt", "has no tokens", "Give at least one token")
        if len(prompt_ids) > self.context_length:
            raise RequestError(
                "prompt",
                f"has {len(prompt_ids)} tokens, and the context holds {self.context_length}",
                "Shorten it, or load the model with a larger context_length",
            )
        vocabulary = self.decoder.spec.vocabulary_size
        checked = []
        for token in prompt_ids:
            try:
                checked.append(operator.index(token))
            except TypeError:
                raise RequestError(
                    "prompt", f"holds {token!r}, which is no token id", "Use whole numbers"
                ) from None
            if not 0 <= checked[-1] < vocabulary:
                raise RequestError(
                    f"prompt token {token}",
                    f"the vocabulary has ids 0 to {vocabulary - 1}",
                    "Encode the prompt with this model's tokenizer",
                )
        return checked

    def _remove_ended(self) -> None:
        for sequence in [each for each in self._sequences if each.finish is not None]:
            self.remove(sequence)

    def _compute(self, slices: list[Slice], wanted: list[int]) -> Floats:
        """Run the decoder over the slices; logits of the last `wanted[i]` tokens of slice i."""
        for part in slices:
            self.pages.extend(part.sequence.pages, part.stop)
        batch = self._batch(slices, wanted)
        return self.decoder.ops.download(self.decoder.step(batch, self._state))

    def _batch(self, slices: list[Slice], wanted: list[int]) -> Batch:
        # Lists first: for the few rows of a step that decodes, arithmetic on arrays takes longer.
        token_ids: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        rows: list[int] = []
        starts = [0]
        for part, count in zip(slices, wanted, strict=True):
            floor = part.sequence.length_floor
            token_ids += part.sequence.token_ids[part.start : part.stop]
            positions += range(part.start, part.stop)
            lengths += (max(floor, length) for length in range(part.start + 1, part.stop + 1))
            starts.append(len(positions))
            rows += range(len(positions) - count, len(positions))
        tables = [part.sequence.pages for part in slices]
        return Batch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            lengths=np.array(lengths, np.int32),
            row_starts=np.array(starts, np.int32),
            page_tables=tuple(
                self.pages.table_array(tables, group) for group in range(len(self.pages.groups))
            ),
            page_tokens=self.pages.page_tokens,
            wanted=np.array(rows, np.int32),
        )

    def _advance(self, part: Slice, logits: Floats | None) -> Progress:
        """Choose a sequence's next token. What was computed counts only from here on, so that
        nothing is lost where a step is interrupted: the same would be computed again."""
        sequence = part.sequence
        if sequence.finish is not None:  # cancelled meanwhile
            return Progress(sequence, None)
        if logits is None:
            self._mark_computed(part)
            return Progress(sequence, None)
        progress = Progress(sequence, None)
        try:
            token = sample(
                logits,
                sequence.sampling,
                sequence.prompt_ids,
                sequence.output_ids,
                sequence.length,
            )
            self._append(sequence, token)
            self._mark_computed(part)
            progress = Progress(sequence, token, logits if sequence.wants_logits else None)
            if sequence.receive is not None and sequence.receive(progress):
                sequence.finish = "stop"
        except FirstlightError as error:
            sequence.finish, sequence.error = "error", error
        if sequence.finish is not None:
            self.remove(sequence)
        elif self._must_replay(sequence):
            self.pages.release(sequence.pages)
            sequence.computed, sequence.length_floor = 0, sequence.length
        return progress

    def _append(self, sequence: Sequence, token: int) -> None:
        sequence.token_ids.append(token)
        sequence.output_ids.append(token)
        if token in sequence.stop.end_ids:
            sequence.finish = "stop"
        elif (
            len(sequence.output_ids) == sequence.stop.max_tokens
            or sequence.length > self.context_length
        ):
            sequence.finish = "length"

    def _mark_computed(self, part: Slice) -> None:
        part.sequence.computed = part.stop
        self.pages.slide(part.sequence.pages, part.stop)

    def _must_replay(self, sequence: Sequence) -> bool:
        limit = self._replay_length
        return limit is not None and sequence.length_floor <= limit < sequence.length


def check_options(context_length: int, sequences: int, token_budget: int, state_dtype: str) -> None:
    """RequestError where no engine could be made with these."""
    check_whole("context_length", context_length, 1, 1 << 62)
    check_whole("sequences", sequences, 1, 1 << 62)
    check_whole("token_budget", token_budget, 1, 1 << 62)
    if state_dtype not in VALUE_BYTES:
        raise RequestError(
            f"state {state_dtype!r}",
            "keys and values cannot be kept in it",
            f"Use one of: {', '.join(VALUE_BYTES)}",
        )


def pages_per_sequence(
    window: int | None, context_length: int, token_budget: int, page_tokens: int
) -> int:
    """Pages of a stream group that one sequence can hold at once.

    While a chunk is computed those are the pages of the chunk's positions and of the window before
    its first; wherever these begin within a page.
    """
    whole = -(-context_length // page_tokens)
    if window is None:
        return whole
    positions = window - 1 + token_budget
    return min(whole, -(-(positions - 1) // page_tokens) + 1)
