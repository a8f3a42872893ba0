"""Text that ends a generation, found across the borders of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StopStrings:
    """Passes text on until a stop string appears; holds back what may be the start of one.

    The text ends before the stop string that is complete first (of several that are complete at
    the same character, the longest), however the text is cut into pieces.

    Attributes:
        stop: the strings, none empty.
        found: whether one has appeared. Nothing is passed on after that.
    """

    stop: tuple[str, ...]
    found: bool = False
    _held: str = field(default="", repr=False)

    def push(self, text: str) -> str:
        """The text that is now certain not to be part of a stop string."""
        if self.found:
            return ""
        held = self._held + text
        starts = ((held.find(stop), len(stop)) for stop in self.stop)
        found = [(start + size, start) for start, size in starts if start >= 0]
        if found:
            self.found, self._held = True, ""
            return held[: min(found)[1]]
        kept = self._longest_start(held)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _longest_start(self, text: str) -> int:
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stop):
                return size
        return 0
