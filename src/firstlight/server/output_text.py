"""A choice's text out of its tokens: thoughts split off, ended before stop strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from firstlight.checkpoint.text_stream import TextStream
from firstlight.server.served_model import END_THINK, THINK
from firstlight.stop_strings import StopStrings


@dataclass
class Reasoning:
    """Splits what stands between <think> and </think> at the very start from what follows.

    Attributes:
        state: "start" while only white space has come, "inside" the thoughts, or "after" them.
            A prompt whose template ends with <think> starts inside.
    """

    state: Literal["start", "inside", "after"] = "start"
    _held: str = field(default="", repr=False)
    _skips_lines: bool = field(default=True, repr=False)  # blank ones, after either marker

    def push(self, text: str) -> tuple[str, str]:
        """(thoughts, answer) that are now certain."""
        if self.state == "after":
            return "", self._without_blank_lines(text)
        held, self._held = self._held + text, ""
        if self.state == "start":
            begun = held.lstrip()
            if THINK.startswith(begun) and begun != THINK:
                self._held = held
                return "", ""
            if not begun.startswith(THINK):
                self.state, self._skips_lines = "after", False
                return "", held
            self.state, held = "inside", begun[len(THINK) :]
        held = self._without_blank_lines(held)
        thoughts, marker, rest = held.partition(END_THINK)
        if marker:
            self.state, self._skips_lines = "after", True
            return thoughts, self._without_blank_lines(rest)
        sizes = range(len(END_THINK) - 1, 0, -1)
        kept = next((size for size in sizes if held.endswith(END_THINK[:size])), 0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept], ""

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return (held, "") if self.state == "inside" else ("", held)

    def _without_blank_lines(self, text: str) -> str:
        if self._skips_lines:
            text = text.lstrip("\n")
            self._skips_lines = not text
        return text


@dataclass
class OutputText:
    """Makes text of one choice's tokens.

    Attributes:
        stops: hold back what may be the start of a stop string; looked for in the answer only.
        reasoning: None where nothing is split off.
        before, offset: characters that the tokens before the last one stand for, and with it.
    """

    stream: TextStream
    stops: StopStrings
    reasoning: Reasoning | None = None
    before: int = 0
    offset: int = 0

    def push(self, token_id: int) -> tuple[str, str]:
        """(thoughts, answer) that are certain with one more token."""
        self.before = self.offset
        return self._split(self.stream.push(token_id))

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more token comes."""
        if self.stops.found:
            return "", ""
        thoughts, answer = self._split(self.stream.finish())
        if self.reasoning is not None:
            more_thoughts, more = self.reasoning.finish()
            thoughts, answer = thoughts + more_thoughts, answer + self.stops.push(more)
        return thoughts, answer if self.stops.found else answer + self.stops.finish()

    @property
    def thinking(self) -> bool:
        """Whether the thoughts have not ended yet."""
        return self.reasoning is not None and self.reasoning.state == "inside"

    def _split(self, text: str) -> tuple[str, str]:
        self.offset += len(text)
        thoughts = ""
        if self.reasoning is not None:
            thoughts, text = self.reasoning.push(text)
        return thoughts, self.stops.push(text) if self.stops.stop else text
