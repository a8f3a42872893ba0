"""What a generation gives: pieces as they come, or the whole at the end."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions, check_whole
from firstlight.engine.scoring import TokenScore
from firstlight.engine.sequence import FinishReason, Progress
from firstlight.errors import FirstlightError
from firstlight.stop_strings import StopStrings

if TYPE_CHECKING:
    from firstlight.checkpoint.text_stream import TextStream
    from firstlight.checkpoint.tokenizer import Tokenizer


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
    """Seconds on a monotonic clock: when it was asked for, had its first token, and ended."""

    started: float = field(default_factory=time.monotonic)
    first_token: float = 0.0
    ended: float = 0.0


class Generation:
    """A generation in progress: iterate it for pieces, or ask for the whole.

    `text`, `token_ids`, `log_probabilities` and `finish_reason` run it to its end first. Closing
    it, or leaving its loop and dropping it, frees its state.

    Iterating one steps the engine, and so brings on every other generation of the same engine;
    what those gain waits in them. One for which there is no state yet waits for those before it.

    Attributes:
        prompt_ids: the prompt's tokens.
        timing: of the prompt and of the whole.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        sampling: SamplingParameters,
        stop: StopConditions,
        log_probabilities: int | None,
    ) -> None:
        """`log_probabilities`: how many alternatives to give with each token's own log
        probability; None: neither.

        Raises:
            RequestError: as `Engine.add`, or `log_probabilities` is out of range.
        """
        if log_probabilities is not None:
            vocabulary = engine.decoder.spec.vocabulary_size
            check_whole("log_probabilities", log_probabilities, 0, vocabulary)
        stream = None if tokenizer is None else _continuation(tokenizer, prompt_ids)
        self._engine = engine
        self._output = _Output(stream, StopStrings(stop.stop))
        self._sequence = engine.add(
            prompt_ids,
            sampling,
            stop,
            wants_scores=log_probabilities,
            receive=self._output.receive,
        )
        self.prompt_ids = self._sequence.prompt_ids
        self.timing = self._output.timing
        if self._sequence.finish is not None:
            self._output.end()
        # A dropped generation may be collected at any time, in the middle of a step too, so this
        # only marks the sequence, and the engine takes the pages back before its next step.
        weakref.finalize(self, self._sequence.cancel).atexit = False

    def __iter__(self) -> Iterator[Piece]:
        """Every piece from the first, those that have come already among them.

        Raises:
            FirstlightError: no next token could be chosen, after the pieces before it.
        """
        index = 0
        while True:
            if index < len(self._output.pieces):
                yield self._output.pieces[index]
                index += 1
            elif self._sequence.finish is None:
                self._engine.step()
            elif self._sequence.error is not None:
                raise self._sequence.error
            else:
                return

    @property
    def text(self) -> str:
        """All text."""
        return "".join(piece.text for piece in self)

    @property
    def token_ids(self) -> list[int]:
        """All new tokens, up to the one that completed a stop string; an end token is not among
        them."""
        return [piece.token_id for piece in self if piece.token_id is not None]

    @property
    def log_probabilities(self) -> list[float]:
        """Of each new token; empty where not asked for."""
        return [piece.log_probability for piece in self if piece.log_probability is not None]

    @property
    def finish_reason(self) -> FinishReason:
        """ "stop" at an end token or stop string, "length" at a limit, "cancelled" if closed."""
        for _ in self:
            pass
        assert self._sequence.finish is not None
        return self._sequence.finish

    @property
    def ended(self) -> bool:
        """Whether no more pieces will come. Does not step the engine."""
        return self._sequence.finish is not None

    @property
    def error(self) -> FirstlightError | None:
        """Why no next token could be chosen, if so. Does not step the engine."""
        return self._sequence.error

    def pieces(self, start: int = 0) -> list[Piece]:
        """Those that have come, from one on. Does not step the engine."""
        return self._output.pieces[start:]

    def cancel(self) -> None:
        """End it; its state is freed before the engine's next step. Any thread may do so."""
        if self._sequence.finish is None:
            self._output.end()
        self._sequence.cancel()

    def close(self) -> None:
        """End it now and free its state. What has come stays."""
        self.cancel()
        self._engine.remove(self._sequence)


@dataclass
class _Output:
    """Makes pieces of tokens as the engine chooses them, whoever steps it. It knows nothing of its
    `Generation`, so that one which nobody holds any longer is collected."""

    stream: TextStream | None
    stops: StopStrings
    timing: Timing = field(default_factory=Timing)
    pieces: list[Piece] = field(default_factory=list)

    def receive(self, progress: Progress) -> bool:
        """Take in a token; True where the text has come to a stop string."""
        token, finish = progress.token_id, progress.sequence.finish
        if token is None:
            return False
        self.timing.first_token = self.timing.first_token or time.monotonic()
        if finish != "stop":  # an end token has no text and is no part of the output
            text = self.stops.push(self.stream.push(token)) if self.stream else ""
            self.pieces.append(_piece(text, token, progress.score))
        if finish is not None and not self.stops.found:
            rest = self.stops.push(self.stream.finish()) if self.stream else ""
            rest += "" if self.stops.found else self.stops.finish()
            if rest:
                self.pieces.append(Piece(rest, None))
        if finish is not None or self.stops.found:
            self.end()
        return self.stops.found

    def end(self) -> None:
        self.timing.ended = time.monotonic()


def _piece(text: str, token_id: int, score: TokenScore | None) -> Piece:
    if score is None:
        return Piece(text, token_id)
    alternatives = tuple(TokenLogProbability(*each) for each in score.likeliest)
    return Piece(text, token_id, score.log_probability, alternatives)


def _continuation(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> TextStream:
    """A stream for text that goes on from the prompt's, if the prompt has any."""
    continues = any(token not in tokenizer.special_ids for token in prompt_ids)
    return tokenizer.stream(continues=continues)
