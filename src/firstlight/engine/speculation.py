"""Tokens guessed ahead, which one step checks all at once.

The next token is a pure function of logits and history, so a guess is right exactly where it is the
token that would have been chosen: output does not change, drawn or greedy, only its speed does.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

from firstlight.engine.parameters import check_whole
from firstlight.engine.sequence import Sequence
from firstlight.errors import RequestError

Speculation = Literal["off", "auto", "mtp"] | int

MOST_PROPOSED = 64
# With few rows a step on most chips takes as long as reading the weights, however many they are.
_CHEAP_ROWS = 16
_FIRST, _MOST = 3, 8
_MOST_PREDICTED = 4  # each is a pass through the predictor
_PATIENCE = 4  # steps in turn whose first guess was wrong, before the next pause
_PAUSES = (8, 128)  # tokens to go without guesses after a wrong one, and at most


class Proposer(Protocol):
    """Guesses how a sequence goes on. A draft model, or a model's own heads, can stand here."""

    def propose(self, sequence: Sequence, count: int) -> Items[int]:
        """At most `count` tokens that may follow `sequence.token_ids`, or none."""
        ...


class PromptLookup:
    """Guesses that what has followed the last few tokens before will follow them again (Saxena
    2023, "Prompt lookup decoding").

    Args:
        sizes: how many last tokens are looked for; the first size that was seen before counts.
    """

    def __init__(self, sizes: Items[int] = (4, 3, 2)) -> None:
        self._sizes = sizes
        self._indices: WeakKeyDictionary[Sequence, _Index] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, count: int) -> Items[int]:
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = _Index(self._sizes)
        return index.propose(sequence.token_ids, count)


class _Index:
    """Where each run of tokens stood last in one sequence."""

    def __init__(self, sizes: Items[int]) -> None:
        self._after: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in sizes}
        self._length = 0

    def propose(self, tokens: list[int], count: int) -> list[int]:
        # A run is entered once a token follows it, so the end of the text never finds itself.
        for size, after in self._after.items():
            for end in range(max(self._length, size), len(tokens)):
                after[tuple(tokens[end - size : end])] = end
        self._length = len(tokens)
        for size, after in self._after.items():
            start = after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if start is not None:
                return tokens[start : start + count]
        return []


class _Record:
    """How guesses for one sequence have fared."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pause = _PAUSES[0]
        self.resume = 0  # sequence length from which on to guess again
        self.failures = 0  # steps in turn without a right guess


class Speculator:
    """Decides how many tokens to guess for each sequence, and learns how good the guesses are.

    Args:
        speculation: "off"; so many tokens a step, always; or "auto", which guesses only while few
            sequences run, more where guesses have been right, and after wrong ones pauses, for
            longer each time. "mtp" is the same for guesses of a model's own predictor, which are
            right more often than not: fewer at once, and pauses only after several failures.
        proposer: where guesses come from.

    Raises:
        RequestError: `speculation` is none of these.
    """

    def __init__(self, speculation: Speculation, proposer: Proposer | None = None) -> None:
        check_speculation(speculation)
        self._fixed = None if isinstance(speculation, str) else int(speculation)
        self._predicts = speculation == "mtp"
        self.enabled = speculation not in ("off", 0)
        self._proposer = proposer or PromptLookup()
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, room: int, decoding: int) -> tuple[int, ...]:
        """Guesses for one of `decoding` sequences that decode in this step; at most `room`."""
        if self._fixed is not None:
            count = self._fixed
        elif 2 * decoding > _CHEAP_ROWS:
            return ()
        else:
            record = self._record(sequence)
            if sequence.length < record.resume:
                return ()
            count = min(record.count, _CHEAP_ROWS // decoding - 1)
        count = min(count, room)
        return tuple(self._proposer.propose(sequence, count)[:count]) if count > 0 else ()

    def learn(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Take in how many of the guesses of a step were right."""
        if self._fixed is not None or not proposed:
            return
        record = self._record(sequence)
        if self._predicts:
            _learn_of_prediction(record, sequence, proposed, accepted)
        elif accepted == proposed:
            record.count = min(2 * record.count, _MOST)
            record.pause = _PAUSES[0]
        elif 2 * accepted >= proposed:
            record.pause = _PAUSES[0]
        elif accepted:
            record.count = max(2, accepted + 1)
        else:
            record.count = _FIRST
            record.resume = sequence.length + record.pause
            record.pause = min(2 * record.pause, _PAUSES[1])

    def _record(self, sequence: Sequence) -> _Record:
        record = self._records.get(sequence)
        if record is None:
            record = self._records[sequence] = _Record(1 if self._predicts else _FIRST)
        return record


def _learn_of_prediction(record: _Record, sequence: Sequence, proposed: int, accepted: int) -> None:
    if accepted:
        record.failures, record.pause = 0, _PAUSES[0]
        if accepted == proposed:
            record.count = min(record.count + 1, _MOST_PREDICTED)
        else:
            record.count = max(1, accepted)
        return
    record.count = 1
    record.failures += 1
    if record.failures >= _PATIENCE:
        record.failures = 0
        record.resume = sequence.length + record.pause
        record.pause = min(2 * record.pause, _PAUSES[1])


def check_speculation(speculation: object) -> None:
    """RequestError where that says nothing about speculation."""
    if isinstance(speculation, str):
        if speculation not in ("off", "auto", "mtp"):
            raise RequestError(
                f"speculation {speculation!r}",
                "is not known",
                f"Use off, auto, mtp, or how many tokens to guess, up to {MOST_PROPOSED}",
            )
    else:
        check_whole("speculation", speculation, 0, MOST_PROPOSED)


def check_prediction(speculation: Speculation, predicts: bool, subject: object) -> None:
    """RequestError where a model without a predictor is to guess by it."""
    if speculation == "mtp" and not predicts:
        raise RequestError(
            f"speculation 'mtp' for {subject}",
            "its files have no layer of multi-token prediction to guess by",
            "Use auto, which guesses from the text, or off",
        )
