"""What a generation gives: pieces as they come, or the whole at the end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sampler import log_probabilities
from firstlight.engine.sequence import FinishReason
from firstlight.engine.stop_strings import StopStrings
from firstlight.formats.base import Floats


@dataclass(frozen=True)
class TokenLogProbability:
    """A token and its log probability under the model, before any sampling parameter."""

    token_id: int
    log_probability: float


@dataclass(frozen=True)
class Piece:
    """What one token added.

    Attributes:
        text: text that is certain now; empty while a character or stop string is unfinished. The
            last piece may hold text of earlier tokens and no token of its own.
        token_id: the token, or None in a closing piece.
        log_probability: of the token, where asked for.
        alternatives: the likeliest tokens, likeliest first, where asked for.
    """

    text: str
    token_id: int | None
    log_probability: float | None = None
    alternatives: tuple[TokenLogProbability, ...] = ()


@dataclass
class Timing:
    """Seconds on a monotonic clock: when it started, had its first token, and ended."""

    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


class Generation:
    """A generation in progress: iterate it for pieces, or ask for the whole.

    `text`, `token_ids`, `log_probabilities` and `finish_reason` run it to its end first. Closing
    it, or leaving its loop and dropping it, frees its state.

    Attributes:
        prompt_ids: the prompt's tokens.
        timing: of the prompt and of the whole.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        prompt_ids: list[int],
        sampling: SamplingParameters,
        stop: StopConditions,
        log_probabilities: int | None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.timing = Timing()
        self._engine = engine
        self._tokenizer = tokenizer
        self._wanted = log_probabilities
        self._sequence = engine.add(prompt_ids, sampling, stop, log_probabilities is not None)
        self._pieces: list[Piece] = []
        self._stop_found = False
        self._running = self._run(stop)

    def __iter__(self) -> Iterator[Piece]:
        """Every piece from the first, those that have come already among them."""
        index = 0
        while True:
            if index == len(self._pieces):
                try:
                    self._pieces.append(next(self._running))
                except StopIteration:
                    return
            yield self._pieces[index]
            index += 1

    @property
    def text(self) -> str:
        """All text."""
        return "".join(piece.text for piece in self)

    @property
    def token_ids(self) -> list[int]:
        """All new tokens; an end token is not among them."""
        return [piece.token_id for piece in self if piece.token_id is not None]

    @property
    def log_probabilities(self) -> list[float]:
        """Of each new token; empty where not asked for."""
        return [piece.log_probability for piece in self if piece.log_probability is not None]

    @property
    def finish_reason(self) -> FinishReason:
        """ "stop" at an end token or stop string, "length" at a limit."""
        for _ in self:
            pass
        if self._stop_found:
            return "stop"
        return self._sequence.finish or "stop"

    def close(self) -> None:
        """End it now and free its state. What has come stays."""
        self._running.close()

    def _run(self, stop: StopConditions) -> Generator[Piece]:
        stream = self._tokenizer.stream(continues=True) if self._tokenizer is not None else None
        stops = StopStrings(stop.stop)
        self.timing.started = time.monotonic()
        try:
            while self._sequence.finish is None and not stops.found:
                for progress in self._engine.step():
                    if progress.sequence is not self._sequence or progress.token_id is None:
                        continue
                    self.timing.first_token = self.timing.first_token or time.monotonic()
                    if self._sequence.finish == "stop":
                        break  # an end token has no text and is no part of the output
                    text = stops.push(stream.push(progress.token_id)) if stream else ""
                    yield self._piece(text, progress.token_id, progress.logits)
            if not stops.found:
                rest = stops.push(stream.finish()) if stream else ""
                rest += "" if stops.found else stops.finish()
                if rest:
                    yield Piece(rest, None)
            self._stop_found = stops.found
        finally:
            self.timing.ended = time.monotonic()
            self._engine.remove(self._sequence)

    def _piece(self, text: str, token_id: int, logits: Floats | None) -> Piece:
        if logits is None or self._wanted is None:
            return Piece(text, token_id)
        values = log_probabilities(logits)
        top = np.argsort(-values, kind="stable")[: self._wanted] if self._wanted else ()
        alternatives = tuple(TokenLogProbability(int(t), float(values[t])) for t in top)
        return Piece(text, token_id, float(values[token_id]), alternatives)
