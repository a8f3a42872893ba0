"""Guesses by a model's own layer of multi-token prediction."""

from __future__ import annotations

from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.sampler import choice_of
from firstlight.engine.scheduler import Slice
from firstlight.engine.sequence import Sequence
from firstlight.errors import FirstlightError
from firstlight.model.batch import Batch, Integers
from firstlight.model.decoder import State
from firstlight.model.predictor import Predictor
from firstlight.ops import Tensor, TokenChoice

_NONE = np.empty(0, np.int32)


@dataclass
class _Draft:
    """What is known of how a sequence goes on.

    Attributes:
        length: of the sequence then; at any other it says nothing.
        hidden: float32 [rows, hidden_size]: the predictor's result after the last token or guess;
            drafts that were made together share it, and this one has `row`.
        guesses: the tokens guessed so far.
    """

    length: int
    hidden: Tensor
    row: int
    guesses: list[int] = field(default_factory=list)


class PredictorProposer:
    """A `Proposer` that follows every step, so that the predictor's state keeps up with the rest.

    A guess is what the sampler would choose from the predictor's logits, with the parameters, seed
    and position that it will have for the model's.

    State past the end of a sequence is of guesses, and is written anew when its tokens are known.
    The entry at the end of a shared prefix is of the token that followed there first: what follows
    elsewhere may be guessed a little worse for that, and is not changed.

    Args:
        state: of the decoder.
        pages: whose those are.
    """

    def __init__(self, predictor: Predictor, state: State, pages: PageAllocator) -> None:
        self._predictor = predictor
        self._ops = predictor.decoder.ops
        self._state = state
        self._pages = pages
        self._drafts: WeakKeyDictionary[Sequence, _Draft] = WeakKeyDictionary()
        # How many guesses each sequence was asked for last.
        self._asked: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def follow(self, slices: list[Slice], hidden: Tensor) -> None:
        """Bring the predictor's state up to that of the model.

        Args:
            slices: of a step whose tokens have been chosen.
            hidden: what the decoder made of their rows, in order.
        """
        rows: list[int] = []
        followed: list[tuple[Sequence, int, int]] = []
        row = 0
        for part in slices:
            sequence = part.sequence
            # Behind these lie guesses that were wrong. Of one that has ended, or that is to be
            # computed anew, there is nothing.
            count = sequence.computed - part.start
            if sequence.finish is None and count > 0 and self._holds(sequence, sequence.computed):
                rows += range(row, row + count)
                followed.append((sequence, part.start, sequence.computed))
            row += part.tokens
        if not followed:
            return
        last = self._predictor.last_hidden(hidden)
        if len(rows) < row:
            last = self._ops.take_rows(last, np.array(rows, np.int32))
        predicted = self._predictor.predict(self._batch(followed), last, self._state)
        ends: list[int] = []
        decoding: list[Sequence] = []
        row = 0
        for sequence, start, stop in followed:
            row += stop - start
            if stop == sequence.length - 1:
                ends.append(row - 1)
                decoding.append(sequence)
        if decoding:
            shared = self._ops.take_rows(predicted, np.array(ends, np.int32))
            for row, sequence in enumerate(decoding):
                self._drafts[sequence] = _Draft(sequence.length, shared, row)

    def propose(self, sequence: Sequence, count: int) -> Items[int]:
        self._asked[sequence] = count
        draft = self._drafts.get(sequence)
        if draft is None or draft.length != sequence.length:
            return ()
        while len(draft.guesses) < count:
            before = len(draft.guesses)
            self._extend(self._alike(sequence, draft))
            if len(draft.guesses) == before:
                break
        return draft.guesses[:count]

    def _alike(self, sequence: Sequence, draft: _Draft) -> list[tuple[Sequence, _Draft]]:
        """A sequence and those that may ask for as many, which is at most one more than last time:
        weights are read once for all."""
        guessed = len(draft.guesses)
        return [
            (other, each)
            for other, each in self._drafts.items()
            if other is sequence
            or (
                each.hidden is draft.hidden
                and len(each.guesses) == guessed <= self._asked.get(other, 0)
                and other.finish is None
                and other.length == each.length
            )
        ]

    def _extend(self, drafts: list[tuple[Sequence, _Draft]]) -> None:
        """Guess one more token of each, where there is state for that already."""
        if drafts[0][1].guesses:
            drafts = [each for each in drafts if self._holds(each[0], _next_position(each[1]) + 1)]
            if not drafts:
                return
            parts = [
                (sequence, _next_position(draft), _next_position(draft) + 1)
                for sequence, draft in drafts
            ]
            guesses = [draft.guesses[-1] for _, draft in drafts]
            shared = self._ops.take_rows(drafts[0][1].hidden, _rows_of(drafts))
            shared = self._predictor.predict(self._batch(parts, guesses), shared, self._state)
            for row, (_, draft) in enumerate(drafts):
                draft.hidden, draft.row = shared, row
        hidden = drafts[0][1].hidden
        logits = self._predictor.logits(hidden, _rows_of(drafts))
        choices = tuple(_choice(sequence, draft) for sequence, draft in drafts)
        tokens = self._ops.download(self._ops.choose_tokens(logits, choices)).tolist()
        for (_, draft), token in zip(drafts, tokens, strict=True):
            # Logits that no token can be drawn from guess nothing; what becomes of the sequence is
            # for the model's own to decide.
            if token >= 0:
                draft.guesses.append(int(token))

    def _holds(self, sequence: Sequence, length: int) -> bool:
        return bool(sequence.pages.pages) and self._pages.reaches(sequence.pages, length)

    def _batch(
        self, parts: list[tuple[Sequence, int, int]], guesses: list[int] | None = None
    ) -> Batch:
        """Rows start:stop of sequences, each with the token that follows it; or with a guess of it,
        where there is one row of each."""
        token_ids: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        starts = [0]
        for sequence, start, stop in parts:
            token_ids += sequence.token_ids[start + 1 : stop + 1] if guesses is None else ()
            positions += range(start, stop)
            floor = sequence.length_floor
            lengths += (max(floor, position + 1) for position in range(start, stop))
            starts.append(len(positions))
        tables = [sequence.pages for sequence, _, _ in parts]
        pages = self._pages
        return Batch(
            token_ids=np.array(token_ids if guesses is None else guesses, np.int32),
            positions=np.array(positions, np.int32),
            lengths=np.array(lengths, np.int32),
            row_starts=np.array(starts, np.int32),
            page_tables=tuple(pages.table_array(tables, each) for each in range(len(pages.groups))),
            page_tokens=pages.page_tokens,
            wanted=_NONE,
        )


def _next_position(draft: _Draft) -> int:
    """Where the last guess stands, less one: the predictor's entry that is made of it."""
    return draft.length + len(draft.guesses) - 2


def _rows_of(drafts: list[tuple[Sequence, _Draft]]) -> Integers:
    return np.array([draft.row for _, draft in drafts], np.int32)


def _choice(sequence: Sequence, draft: _Draft) -> TokenChoice:
    """What the sampler would take after the guesses so far."""
    output = [*sequence.output_ids, *draft.guesses]
    allowed = None
    if sequence.allowed is not None:
        # What may follow the guesses is asked again when they have come true, and fails then.
        with suppress(FirstlightError):
            allowed = sequence.allowed(output)
    length = draft.length + len(draft.guesses)
    return choice_of(sequence.sampling, sequence.prompt_ids, output, length, allowed)
