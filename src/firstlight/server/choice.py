"""The choices of a request while their tokens come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from firstlight.server.output_text import OutputText
from firstlight.server.response_bodies import CompletionTokenDetails, PromptTokenDetails, Usage
from firstlight.server.token_streams import PromptEvent, TokenEvent, TokenStream

_WAITING = 16


@dataclass(eq=False)
class Choice:
    """One sequence of a request, and what has come of it.

    Attributes:
        index: its number in the answer.
        prompt: number of its prompt in the request.
        text: makes text of its tokens.
        wanted: keep so many tokens of the output; the engine may be asked for one more, to have a
            prompt's log probabilities.
        finish: why it ended, or None while it has not.
        tokens: chosen so far, the one that ended it included.
        reasoning_tokens: of those, before the end of the thoughts.
        prompt_event: once the prompt is computed.
    """

    index: int
    prompt: int
    prompt_ids: Sequence[int]
    stream: TokenStream
    text: OutputText
    wanted: int | None = None
    finish: str | None = None
    tokens: int = 0
    reasoning_tokens: int = 0
    prompt_event: PromptEvent | None = None

    def take(self, event: TokenEvent) -> tuple[str, str]:
        """(thoughts, answer) that a token makes certain; sets `finish` at the end."""
        if self.wanted == 0:
            self.end("length")
            return "", ""
        self.tokens += 1
        if event.finish == "stop":  # an end token has no text and is no part of the output
            self.finish = "stop"
            return self.text.finish()
        thoughts, answer = self.text.push(event.token_id)
        self.reasoning_tokens += self.text.thinking
        if self.text.stops.found:
            self.end("stop")
        elif event.finish is not None:
            self.finish = event.finish
            more_thoughts, more = self.text.finish()
            thoughts, answer = thoughts + more_thoughts, answer + more
            if self.text.stops.found:
                self.finish = "stop"
        return thoughts, answer

    def end(self, reason: str) -> None:
        """Stop here, whatever else would come."""
        self.finish = reason
        self.stream.cancel()


async def events(
    choices: Sequence[Choice],
) -> AsyncGenerator[tuple[Choice, TokenEvent], None]:
    """The tokens of all choices as they come, until each has ended.

    Raises:
        FirstlightError: a sequence failed.
    """
    if len(choices) == 1:
        choice = choices[0]
        async for event in choice.stream:
            if isinstance(event, PromptEvent):
                choice.prompt_event = event
                continue
            yield choice, event
            if choice.finish is not None:
                return
        choice.finish = choice.finish or "length"
        return
    async for choice, event in _merged(choices):
        yield choice, event


async def _merged(
    choices: Sequence[Choice],
) -> AsyncGenerator[tuple[Choice, TokenEvent], None]:
    # Bounded: what a slow client leaves waits in the streams, which have bounds of their own.
    arrivals: asyncio.Queue[tuple[Choice, TokenEvent | BaseException | None]]
    arrivals = asyncio.Queue(_WAITING * len(choices))

    async def pump(choice: Choice) -> None:
        try:
            async for event in choice.stream:
                if isinstance(event, PromptEvent):
                    choice.prompt_event = event
                else:
                    await arrivals.put((choice, event))
        except Exception as error:
            await arrivals.put((choice, error))
        else:
            await arrivals.put((choice, None))

    pumps = [asyncio.create_task(pump(choice)) for choice in choices]
    running = len(choices)
    try:
        while running:
            choice, event = await arrivals.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                running -= 1
                choice.finish = choice.finish or "length"
            elif choice.finish is None:
                yield choice, event
    finally:
        for task in pumps:
            task.cancel()


def cancel(choices: Sequence[Choice]) -> None:
    """End all that have not ended, and free their pages."""
    for choice in choices:
        with contextlib.suppress(Exception):
            choice.stream.cancel()


def usage_of(choices: Sequence[Choice]) -> Usage:
    """What the request has cost so far."""
    prompts = {choice.prompt: choice for choice in reversed(choices)}
    prompt_tokens = sum(len(choice.prompt_ids) for choice in prompts.values())
    cached = sum(
        choice.prompt_event.cached_tokens
        for choice in prompts.values()
        if choice.prompt_event is not None
    )
    tokens = sum(choice.tokens for choice in choices)
    return Usage(
        prompt_tokens,
        tokens,
        prompt_tokens + tokens,
        PromptTokenDetails(cached),
        CompletionTokenDetails(sum(choice.reasoning_tokens for choice in choices)),
    )
