"""The engine: sequences in, tokens out, a step at a time."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Sequence as Items
from dataclasses import asdict

import numpy as np

from firstlight.engine.batching import Rows, make_batch, row_numbers, wanted_rows
from firstlight.engine.choosing import Choosing, Chosen
from firstlight.engine.decode_step import DecodeSteps
from firstlight.engine.options import (
    PAGE_TOKENS,
    PROMPT_BUDGET,
    TOKEN_BUDGET,
    check_options,
)
from firstlight.engine.pages import PageAllocator
from firstlight.engine.parameters import (
    SamplingParameters,
    StopConditions,
    check_token_ids,
    check_whole,
)
from firstlight.engine.prediction import PredictorProposer
from firstlight.engine.prefix_cache import PrefixCache
from firstlight.engine.sampler import check_logit_bias, checked_token
from firstlight.engine.scheduler import Scheduler, Slice
from firstlight.engine.sequence import (
    AllowedTokens,
    Progress,
    ReceivePromptLogits,
    Sequence,
)
from firstlight.engine.speculation import (
    Proposer,
    Speculation,
    Speculator,
    check_prediction,
)
from firstlight.engine.state_size import (
    longest_sequence,
    page_bytes,
    page_counts,
    pages_per_sequence,
)
from firstlight.engine.statistics import EngineStatistics, Totals
from firstlight.errors import FirstlightError, RequestError
from firstlight.formats.base import Floats
from firstlight.model.decoder import Decoder
from firstlight.model.predictor import Predictor
from firstlight.model.rope import replay_length
from firstlight.model.stream import whole_pages


class Engine:
    """Runs sequences on one decoder, as many at once as there is state for.

    A step computes one token of every sequence that decodes, and of prompts what the budgets leave.
    So beside a prompt of any length a stream gets a token every step, and a step computes at most
    `prompt_budget` tokens more than there are streams (and guesses, which only fill what few
    streams leave unused). Streams beyond `token_budget` would have to take turns.

    State is a pool of pages. Sequences take pages as they grow; where there is none left, the
    sequence of lowest priority that came last gives back its own, and is computed anew once there
    is room. Prefixes that were computed before, and whose pages nobody has needed since, are used
    again. Whatever happens to a sequence, its tokens are those that it would get alone.

    Safe to be used from several threads: steps are taken in turn, and hold up nothing else.

    Args:
        context_length: longest sequence, in tokens.
        sequences: how many may run at once; further ones wait.
        token_budget: most tokens of one step; longer prompts are computed in chunks.
        state_dtype: "float32" or "bfloat16".
        page_tokens: token positions per page, or the next multiple that every stream's stride
            divides.
        state_memory: bytes of state there are; None: enough for all `sequences` at full length.
        prompt_budget: most tokens of prompts in a step in which other sequences decode.
        prefix_caching: whether state is shared by sequences that begin alike.
        speculation: see `Speculator`.
        proposer: where guesses come from; None: `PromptLookup`, or the decoder's predictor with
            "mtp".

    Raises:
        RequestError: one of these is out of range, or the decoder has no predictor for "mtp".
        InsufficientMemoryError: state_memory is less than one page of tokens takes.
    """

    def __init__(
        self,
        decoder: Decoder,
        context_length: int,
        sequences: int = 1,
        token_budget: int = TOKEN_BUDGET,
        state_dtype: str = "float32",
        page_tokens: int = PAGE_TOKENS,
        *,
        state_memory: int | None = None,
        prompt_budget: int = PROMPT_BUDGET,
        prefix_caching: bool = True,
        speculation: Speculation = "off",
        proposer: Proposer | None = None,
    ) -> None:
        check_options(
            context_length,
            sequences,
            token_budget,
            state_dtype,
            state_memory=state_memory,
            prompt_budget=prompt_budget,
            speculation=speculation,
        )
        self.decoder = decoder
        self.context_length = context_length
        self.token_budget = token_budget
        self.state_dtype = state_dtype
        page_tokens = whole_pages(decoder.streams, page_tokens)
        capacities = self._capacities(sequences, state_memory, page_tokens)
        self._sequence_tokens = longest_sequence(
            decoder.groups, capacities, context_length, token_budget, page_tokens
        )
        self.pages = PageAllocator(decoder.groups, capacities, page_tokens)
        self._state = decoder.new_state(capacities, page_tokens, state_dtype)
        self._decode_steps = DecodeSteps(decoder, self._state, self.pages, state_dtype)
        self._replay_length = replay_length(decoder.spec)
        self._totals = Totals()
        self._predicting: PredictorProposer | None = None
        if speculation == "mtp" and proposer is None:
            check_prediction(speculation, decoder.spec.predictor is not None, decoder.spec.family)
            self._predicting = PredictorProposer(Predictor(decoder), self._state, self.pages)
            proposer = self._predicting
        self._speculator = Speculator(speculation, proposer)
        self.scheduler = Scheduler(
            self.pages,
            PrefixCache(decoder.spec, self.pages, prefix_caching),
            self._speculator,
            self._totals,
            sequences=sequences,
            token_budget=token_budget,
            prompt_budget=prompt_budget,
            limit=self._sequence_tokens,
            replay_length=self._replay_length,
        )
        self._arrivals = itertools.count()
        self._arrived: deque[Sequence] = deque()
        self._lock = threading.RLock()
        self._others = 0  # threads that wait to step

    @property
    def sequence_tokens(self) -> int:
        """Most tokens that one sequence can hold state for: the context length, or less where
        there is less memory. A sequence that has grown so long ends."""
        return self._sequence_tokens

    def statistics(self) -> EngineStatistics:
        """What was done so far, and how full the engine is. Does not wait for a step to end."""
        pools = self.pages.pools
        return EngineStatistics(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self._arrived),
            pages=sum(pool.capacity for pool in pools),
            free_pages=sum(pool.free for pool in pools),
            **asdict(self._totals),
        )

    def add(
        self,
        prompt_ids: Items[int],
        sampling: SamplingParameters,
        stop: StopConditions,
        *,
        output_ids: Items[int] = (),
        priority: int = 0,
        tenant: str = "",
        wants_logits: bool = False,
        wants_scores: int | None = None,
        receive_prompt_logits: ReceivePromptLogits | None = None,
        receive: Callable[[Progress], bool] | None = None,
        allowed: AllowedTokens | None = None,
    ) -> Sequence:
        """Take in a sequence.

        Args:
            output_ids: tokens that followed the prompt elsewhere; the sequence goes on after them
                as if it had been here all the time.
            priority: higher ones are computed first.
            tenant: state is shared between sequences of one tenant only.
            wants_logits, wants_scores, receive_prompt_logits, receive, allowed: see `Sequence`.
                With `receive_prompt_logits` the whole prompt is computed, whatever is there of it;
                with a `max_tokens` of 0 nothing else is.

        Raises:
            RequestError: the prompt is empty, too long, or has ids outside the vocabulary; or
                logit_bias has.
        """
        check_logit_bias(sampling, self.decoder.spec.vocabulary_size)
        check_whole("priority", priority, -(1 << 31), 1 << 31)
        prompt = self._checked(prompt_ids)
        sequence = Sequence(
            prompt,
            sampling,
            stop,
            self.pages.new_table(),
            check_token_ids(output_ids, self.decoder.spec.vocabulary_size, "output token"),
            receive=receive,
            receive_prompt_logits=receive_prompt_logits,
            allowed=allowed,
            priority=priority,
            tenant=tenant,
            wants_logits=wants_logits,
            wants_scores=wants_scores,
        )
        sequence.length_floor = self._length_floor(len(prompt), sequence.length)
        if sequence.output_ids:
            self._check_end(sequence)
        elif stop.max_tokens == 0 and receive_prompt_logits is None:
            sequence.finish = "length"
        if sequence.finish is None:
            sequence.arrival = next(self._arrivals)
            self._arrived.append(sequence)
            self._unless_busy(self._take_in)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """End a sequence and free its pages at once; while another thread's step runs, before the
        next one. Harmless if it has ended already."""
        sequence.cancel()
        self._unless_busy(lambda: self.scheduler.remove(sequence))

    def step(self) -> list[Progress]:
        """Compute the next tokens of the sequences there are; empty when there are none.

        There is one `Progress` for each new token, in order, and one without a token for each
        sequence whose prompt is not whole yet. What goes wrong with one sequence alone ends that
        one, see `Sequence.error`. After an exception every sequence stands where it stood before
        the step, or where the step would have brought it, and can go on.
        """
        self._others += 1
        with self._lock:
            self._others -= 1
            started = time.perf_counter()
            self._take_in()
            for sequence in [each for each in self.scheduler if each.finish is not None]:
                self.scheduler.remove(sequence)
            slices = self.scheduler.plan()
            if not slices:
                return []
            progress = self._compute(slices)
            self._totals.steps += 1
            self._totals.step_seconds += time.perf_counter() - started
            return progress

    def let_others_step(self) -> None:
        """For a thread that steps all the time: give way to one that waits to step."""
        if self._others > 0:
            time.sleep(1e-4)

    def logits(self, token_ids: Items[int]) -> Floats:
        """Logits after every token: float32 [tokens, vocabulary].

        Other sequences go on meanwhile; where there is no state for one more, it waits for them.

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
        """The same a few rows at a time, for who cannot hold them all."""
        chunks: list[Floats] = []
        sequence = self.add(
            token_ids,
            SamplingParameters(),
            StopConditions(max_tokens=0),
            receive_prompt_logits=lambda _, rows: chunks.append(rows),
        )
        try:
            while chunks or sequence.finish is None:
                if chunks:
                    yield chunks.pop(0)
                else:
                    self.step()
        finally:
            self.remove(sequence)

    # What is asked of an engine --------------------------------------------------------------

    def _capacities(self, sequences: int, memory: int | None, page_tokens: int) -> tuple[int, ...]:
        groups, context, budget = self.decoder.groups, self.context_length, self.token_budget
        if memory is None:
            return tuple(
                sequences * pages_per_sequence(group.window, context, budget, page_tokens)
                for group in groups
            )
        bytes_of = [
            page_bytes(self.decoder.streams, group, self.state_dtype, page_tokens)
            for group in groups
        ]
        return page_counts(groups, bytes_of, memory, context, budget, page_tokens)

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
        if len(prompt_ids) > self.sequence_tokens:
            raise RequestError(
                "prompt",
                f"has {len(prompt_ids)} tokens, and there is state for {self.sequence_tokens}",
                "Shorten it, or load the model with a larger state_memory",
            )
        return check_token_ids(prompt_ids, self.decoder.spec.vocabulary_size, "prompt token")

    def _unless_busy(self, change: Callable[[], None]) -> None:
        """Make a change now, unless another thread's step runs: the next step will see to it."""
        if self._lock.acquire(blocking=False):
            try:
                change()
            finally:
                self._lock.release()

    def _take_in(self) -> None:
        while self._arrived:
            self.scheduler.add(self._arrived.popleft())

    def _length_floor(self, prompt: int, length: int) -> int:
        """What `Sequence.length_floor` is of one that has grown from its prompt to a length."""
        replay = self._replay_length
        return prompt if replay is None or not prompt <= replay < length else replay + 1

    # What a step does ------------------------------------------------------------------------

    def _compute(self, slices: list[Slice]) -> list[Progress]:
        decoder, ops = self.decoder, self.decoder.ops
        replayed = None if self._predicting else self._decode_steps.logits(slices)
        hidden = None
        if replayed is None:
            hidden = decoder.hidden(make_batch(slices, self.pages), self._state)
        choosing = Choosing(ops)
        for run in wanted_rows(slices):
            numbers = row_numbers(run)
            if not len(numbers):
                continue
            if replayed is None:
                logits = decoder.logits(hidden, numbers)
            else:
                logits = ops.take_rows(replayed, numbers)
            if any(rows.prompt for rows in run):
                self._give_prompt_logits(run, ops.download(logits))
            choosing.ask(logits, run)
        chosen = choosing.bring()
        progress: list[Progress] = []
        for part in slices:
            progress += self._advance(part, chosen.get(part, []))
        if self._predicting is not None:
            self._predicting.follow(slices, hidden)
            for part in slices:
                self.scheduler.slide(part.sequence)
        return progress

    def _give_prompt_logits(self, run: list[Rows], logits: Floats) -> None:
        first = 0
        for rows in run:
            sequence = rows.part.sequence
            receive = sequence.receive_prompt_logits
            if rows.prompt and sequence.finish is None and receive is not None:
                receive(rows.position, logits[first : first + rows.count])
                sequence.prompt_logits_given = rows.position + rows.count
            first += rows.count

    def _advance(self, part: Slice, chosen: list[Chosen]) -> list[Progress]:
        """Take in a sequence's next tokens. What was computed counts only from here on, so that
        nothing is lost where a step is interrupted: the same would be computed again."""
        sequence = part.sequence
        if sequence.finish is not None:  # cancelled meanwhile
            return [Progress(sequence, None)]
        progress: list[Progress] = []
        if chosen:
            try:
                self._take(part, chosen, progress)
            except FirstlightError as error:
                sequence.finish, sequence.error = "error", error
        else:
            self._mark_computed(sequence, part.stop)
            if part.completes:  # whose prompt only was asked for
                sequence.finish = "length"
        if sequence.finish is not None:
            self.remove(sequence)
        elif self._must_replay(sequence):
            self.scheduler.restart(sequence)
            sequence.length_floor = sequence.length
        elif part.proposal:
            self.pages.cut(sequence.pages, sequence.length)
        return progress or [Progress(sequence, None)]

    def _take(self, part: Slice, chosen: list[Chosen], progress: list[Progress]) -> None:
        """Tokens of each row, as long as the row was computed from the right ones."""
        sequence, proposal = part.sequence, part.proposal
        accepted = 0
        for index, row in enumerate(chosen):
            if row.error is not None:
                raise row.error
            token = checked_token(row.token)
            self._append(sequence, token)
            self._mark_computed(sequence, sequence.length - 1)
            progress.append(Progress(sequence, token, row.logits, row.score))
            if sequence.receive is not None and sequence.receive(progress[-1]):
                sequence.finish = "stop"
            if index == len(proposal) or proposal[index] != token:
                break
            accepted += 1
            if sequence.finish is not None:
                break
        if proposal:
            self._totals.proposed_tokens += len(proposal)
            self._totals.accepted_tokens += accepted
            self._speculator.learn(sequence, len(proposal), accepted)

    def _append(self, sequence: Sequence, token: int) -> None:
        sequence.token_ids.append(token)
        sequence.output_ids.append(token)
        self._totals.output_tokens += 1
        self._check_end(sequence)

    def _check_end(self, sequence: Sequence) -> None:
        if sequence.output_ids[-1] in sequence.stop.end_ids:
            sequence.finish = "stop"
        elif (
            sequence.stop.max_tokens is not None
            and len(sequence.output_ids) >= sequence.stop.max_tokens
        ) or sequence.length > self.sequence_tokens:
            sequence.finish = "length"

    def _mark_computed(self, sequence: Sequence, length: int) -> None:
        sequence.computed = length
        # The predictor's layer writes its entries last, of positions behind a window too.
        self.scheduler.computed(sequence, written=self._predicting is None)

    def _must_replay(self, sequence: Sequence) -> bool:
        limit = self._replay_length
        return limit is not None and sequence.length_floor <= limit < sequence.length
