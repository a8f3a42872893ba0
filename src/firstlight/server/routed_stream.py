"""One request's tokens on their way through the router, whichever replica computes them."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable

import msgspec

from firstlight.errors import FirstlightError, RequestError
from firstlight.replica.messages import Prompt, SequenceRequest, Start, Token, TokenScore
from firstlight.server.token_streams import PromptEvent, TokenEvent

UNREAD_SCORES = 4096
"""Log probabilities that may wait for their reader; a token alone takes four bytes."""

OUTSIDE_WEIGHT = 0.2
_BEFORE_ALL = (1 << 31) - 1


class RoutedStream:
    """A `TokenStream`. The router puts in what replicas say; one reader takes it out.

    What the reader has not taken yet is kept: four bytes a token, for at most as many tokens as the
    context holds, since they are needed to go on elsewhere anyway. Log probabilities are larger:
    a reader that leaves `UNREAD_SCORES` of them waiting loses its stream.

    Attributes:
        number: of the sequence, never used twice.
        output_ids: tokens so far.
        opened: when, on the loop's clock.
        unplaced: since when no replica has it, on the same clock; None while one has.
        ended: no more will come; the reader may still have to read.
        crashes: of replicas that had it, in a row, since it last gained a token.
        convictions: those among them to which no other request can have led; one that was killed
            from outside counts for `OUTSIDE_WEIGHT`.
    """

    def __init__(
        self,
        number: int,
        model: str,
        request: SequenceRequest,
        cancel: Callable[[RoutedStream], None],
        now: float,
    ) -> None:
        self.number = number
        self.model = model
        self.request = request
        self.output_ids = array("i")
        self.opened = now
        self.unplaced: float | None = now
        self.ended = False
        self.crashes = 0
        self.convictions = 0.0
        self._cancel = cancel
        self._progress_at_crash = -1
        self._prompt: PromptEvent | None = None
        self._prompt_read = False
        self._read = 0
        self._finish: str | None = None
        self._error: FirstlightError | None = None
        self._scores: deque[TokenScore | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    # What the reader does -------------------------------------------------------------------

    def __aiter__(self) -> RoutedStream:
        return self

    async def __anext__(self) -> PromptEvent | TokenEvent:
        while True:
            if self._prompt is not None and not self._prompt_read:
                self._prompt_read = True
                return self._prompt
            if self._read < len(self.output_ids):
                return self._next_token()
            if self.ended:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _next_token(self) -> TokenEvent:
        token = self.output_ids[self._read]
        self._read += 1
        finish = self._finish if self._read == len(self.output_ids) else None
        return TokenEvent(token, finish, self._scores.popleft() if self._scored else None)

    def cancel(self) -> None:
        if not self.ended:
            self.end()
            self._cancel(self)

    # What the router does -------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether its prompt has been computed, by whichever replica."""
        return self._prompt is not None

    @property
    def suspect(self) -> bool:
        """Whether it may be what ends replicas: two in a row ended while it gained nothing."""
        return self.crashes >= 2

    @property
    def _scored(self) -> bool:
        return self.request.log_probabilities is not None

    def start(self) -> Start:
        """The message that has a replica begin with it, or go on from where it stands."""
        request = self.request
        if self.begun and request.prompt_log_probabilities is not None:
            request = msgspec.structs.replace(request, prompt_log_probabilities=None)
        if self.suspect:
            # First of all, so that a replica that ends by chance meanwhile is unlikely.
            request = msgspec.structs.replace(request, priority=_BEFORE_ALL)
        return Start(self.number, request, self.output_ids.tolist())

    def put_prompt(self, prompt: Prompt) -> None:
        """Take in that the prompt is computed; only the first time is told to the reader."""
        if self._prompt is None:
            self._prompt = PromptEvent(prompt.cached_tokens, prompt.scores)
            if prompt.finish is not None:
                self.ended = True
            self._wake()

    def put(self, token: Token) -> bool:
        """Take in the next token; False where it is not the next one, which no replica may do."""
        if token.index != len(self.output_ids) or self._prompt is None:
            return False
        self.output_ids.append(token.token_id)
        self.crashes, self.convictions = 0, 0.0
        if self._scored:
            self._scores.append(token.score)
            if len(self._scores) > UNREAD_SCORES and token.finish is None:
                self.fail(_too_slow())
                self._cancel(self)
                return True
        if token.finish is not None:
            self._finish, self.ended = token.finish, True
        self._wake()
        return True

    def fail(self, error: FirstlightError) -> None:
        """End it with an error, which the reader gets after what came before it."""
        self._error = error
        self.end()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def crashed(self, only_suspect: bool, from_outside: bool = False) -> None:
        """Its replica has ended.

        Args:
            only_suspect: no other suspect was on that replica.
            from_outside: somebody killed the process: a person, or a system short of memory.
        """
        progress = len(self.output_ids) + self.begun
        if progress != self._progress_at_crash:
            self.crashes, self.convictions = 0, 0.0
        elif self.suspect and only_suspect:
            self.convictions += OUTSIDE_WEIGHT if from_outside else 1.0
        self._progress_at_crash = progress
        self.crashes += 1

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _too_slow() -> FirstlightError:
    return RequestError(
        "logprobs",
        f"{UNREAD_SCORES} tokens' log probabilities wait to be read",
        "Read the stream as it comes, or ask for no log probabilities",
    )
