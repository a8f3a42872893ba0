"""The next tokens of a step: chosen where the logits are, and brought to the host together.

So a step waits for a device once, however many rows it chooses for, and what crosses is a few
numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from firstlight.engine.batching import Rows
from firstlight.engine.sampler import check_logit_bias, choice_of
from firstlight.engine.scheduler import Slice
from firstlight.engine.scoring import TokenScore
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats
from firstlight.ops import Ops, Tensor
from firstlight.ops.choose_tokens import TokenChoice


@dataclass(frozen=True, eq=False)
class Chosen:
    """What came of one row.

    Attributes:
        token: as `choose_tokens` gives it.
        logits: where the sequence wants them.
        score: likewise.
        error: why the row could not be asked for.
    """

    token: int
    logits: Floats | None = None
    score: TokenScore | None = None
    error: FirstlightError | None = None


@dataclass(eq=False)
class _Pending:
    """Rows that were asked for together.

    Attributes:
        places: which of a slice's rows each is.
        tensors: their tokens; then logits, or log probability, likeliest tokens and theirs.
    """

    places: list[tuple[Slice, int]]
    tensors: list[Tensor]
    wants_logits: bool


@dataclass(eq=False)
class Choosing:
    """The tokens of one step: `ask` for some rows after others, then `bring`."""

    ops: Ops
    _pending: list[_Pending] = field(default_factory=list)
    _errors: dict[tuple[Slice, int], FirstlightError] = field(default_factory=dict)

    def ask(self, logits: Tensor, run: list[Rows]) -> None:
        """Have the tokens of a run chosen.

        Args:
            logits: float32 [rows of the run, vocabulary].
        """
        # Rows of whom more than a token is wanted are asked for by themselves.
        kinds: dict[tuple[bool, int | None], list[tuple[int, Slice, int, TokenChoice]]] = {}
        first = 0
        for rows in run:
            if rows.chooses:
                part = rows.part
                kind = part.sequence.wants_logits, part.sequence.wants_scores
                each = enumerate(self._choices(part, logits.shape[1]))
                kinds.setdefault(kind, []).extend(
                    (first + index, part, index, choice) for index, choice in each
                )
            first += rows.count
        for (wants_logits, wants_scores), asked in kinds.items():
            mine = logits
            if len(asked) < first:
                numbers = np.array([row for row, _, _, _ in asked], np.int32)
                mine = self.ops.take_rows(logits, numbers)
            choices = tuple(choice for _, _, _, choice in asked)
            tensors = [self.ops.choose_tokens(mine, choices)]
            if wants_logits:
                tensors.append(mine)
            if wants_scores is not None:
                tensors += self._scores(mine, tensors[0], wants_scores)
            places = [(part, index) for _, part, index, _ in asked]
            self._pending.append(_Pending(places, tensors, wants_logits))

    def bring(self) -> dict[Slice, list[Chosen]]:
        """What was chosen for each slice, row by row. Waits for the device once."""
        tensors = [tensor for pending in self._pending for tensor in pending.tensors]
        arrays = iter(self.ops.download_together(tensors) if tensors else ())
        found: dict[Slice, list[Chosen]] = {}
        for pending in self._pending:
            tokens, *more = (next(arrays) for _ in pending.tensors)
            logits = more.pop(0) if pending.wants_logits else None
            for row, (place, token) in enumerate(zip(pending.places, tokens.tolist(), strict=True)):
                found.setdefault(place[0], []).append(
                    Chosen(
                        token,
                        None if logits is None else logits[row],
                        _score(*(array[row] for array in more)) if more else None,
                        self._errors.get(place),
                    )
                )
        return found

    def _choices(self, part: Slice, vocabulary: int) -> Iterator[TokenChoice]:
        """Of each row of a slice that chooses, as if the guesses before it were right."""
        sequence, output = part.sequence, part.sequence.output_ids
        moot = False
        for index, follows in enumerate((None, *part.proposal)):
            if follows is not None:
                output = [*output, follows]
            allowed = None
            if not moot:
                try:
                    check_logit_bias(sequence.sampling, vocabulary)
                    allowed = None if sequence.allowed is None else sequence.allowed(output)
                except FirstlightError as error:
                    self._errors[part, index] = error
                    moot = True
            if moot:  # behind a guess that cannot come true
                yield TokenChoice(follows=follows)
                continue
            yield choice_of(
                sequence.sampling,
                sequence.prompt_ids,
                output,
                sequence.length + index,
                allowed,
                follows,
            )
            if allowed is not None and index < len(part.proposal):
                moot = not allowed[part.proposal[index]]

    def _scores(self, logits: Tensor, tokens: Tensor, count: int) -> list[Tensor]:
        ops = self.ops
        each = tokens.reshape((tokens.shape[0], 1))
        likeliest = ops.likeliest_tokens(logits, min(count, logits.shape[1]))
        return [
            ops.token_log_probabilities(logits, each),
            likeliest,
            ops.token_log_probabilities(logits, likeliest),
        ]


def _score(own: Floats, likeliest: np.ndarray, values: Floats) -> TokenScore:
    pairs = zip(likeliest.tolist(), values.tolist(), strict=True)
    return TokenScore(float(own[0]), tuple(pairs))
