"""Guesses by a model's own layer of multi-token prediction."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.sampler import sample
from firstlight.engine.scheduler import Slice
from firstlight.engine.sequence import Sequence
from firstlight.errors import FirstlightError
from firstlight.model.batch import Batch
from firstlight.model.decoder import State
from firstlight.model.predictor import Predictor
from firstlight.ops import Tensor

_FIRST_ROW = np.zeros(1, np.int32)
_NONE = np.empty(0, np.int32)


@dataclass
class _Draft:
    """What is known of how a sequence goes on.

    Attributes:
        length: of the sequence then; at any other it says nothing.
        hidden: float32 [1, hidden_size]: the predictor's result after the last token or guess.
        guesses: the tokens guessed so far.
    """

    length: int
    hidden: Tensor
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
        row = 0
        for sequence, start, stop in followed:
            row += stop - start
            if stop == sequence.length - 1:
                here = self._ops.take_rows(predicted, np.array([row - 1], np.int32))
                self._drafts[sequence] = _Draft(sequence.length, here)

    def propose(self, sequence: Sequence, count: int) -> Items[int]:
        draft = self._drafts.get(sequence)
        if draft is None or draft.length != sequence.length:
            return ()
        try:
            while len(draft.guesses) < count and self._extend(sequence, draft):
                pass
        except FirstlightError:
            # Such logits say nothing; the model's own decide what becomes of the sequence.
            del self._drafts[sequence]
        return draft.guesses[:count]

    def _extend(self, sequence: Sequence, draft: _Draft) -> bool:
        """Guess one more token; False where there is no state for that yet."""
        if draft.guesses:
            position = draft.length + len(draft.guesses) - 2
            if not self._holds(sequence, position + 1):
                return False
            batch = self._batch([(sequence, position, position + 1)], draft.guesses[-1])
            draft.hidden = self._predictor.predict(batch, draft.hidden, self._state)
        logits = self._ops.download(self._predictor.logits(draft.hidden, _FIRST_ROW))[0]
        output = [*sequence.output_ids, *draft.guesses]
        draft.guesses.append(
            sample(
                logits,
                sequence.sampling,
                sequence.prompt_ids,
                output,
                draft.length + len(draft.guesses),
                None if sequence.allowed is None else sequence.allowed(output),
                int(logits.argmax()),
            )
        )
        return True

    def _holds(self, sequence: Sequence, length: int) -> bool:
        return bool(sequence.pages.pages) and self._pages.reaches(sequence.pages, length)

    def _batch(self, parts: list[tuple[Sequence, int, int]], token: int | None = None) -> Batch:
        """Rows start:stop of sequences, each with the token that follows it; or with `token`."""
        token_ids: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        starts = [0]
        for sequence, start, stop in parts:
            token_ids += sequence.token_ids[start + 1 : stop + 1] if token is None else [token]
            positions += range(start, stop)
            floor = sequence.length_floor
            lengths += (max(floor, position + 1) for position in range(start, stop))
            starts.append(len(positions))
        tables = [sequence.pages for sequence, _, _ in parts]
        pages = self._pages
        return Batch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            lengths=np.array(lengths, np.int32),
            row_starts=np.array(starts, np.int32),
            page_tables=tuple(pages.table_array(tables, each) for each in range(len(pages.groups))),
            page_tokens=pages.page_tokens,
            wanted=_NONE,
        )
