"""How fast requests are served, and so how long one more would wait."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from firstlight.replica.messages import Statistics
from firstlight.server.routed_stream import RoutedStream

_MEMORY_SECONDS = 10.0
_LONGEST = 600.0


@dataclass
class Speed:
    """Tokens a second of one replica while it computes, the last ten seconds counting most."""

    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, before: Statistics, after: Statistics) -> None:
        """Take in what was computed between two reports of one process."""
        seconds = after.step_seconds - before.step_seconds
        if seconds <= 0:
            return
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self.tokens = kept * self.tokens + work_done(after) - work_done(before)
        self.seconds = kept * self.seconds + seconds

    @property
    def rate(self) -> float:
        """Tokens a second; 0 while nothing is known."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def work_done(statistics: Statistics) -> int:
    """Tokens of prompts and outputs that were computed."""
    return statistics.prompt_tokens - statistics.cached_tokens + statistics.output_tokens


class Outputs:
    """How many tokens a request comes to, which nobody knows before it ends: a moving mean."""

    def __init__(self) -> None:
        self.mean = 128.0

    def add(self, count: int) -> None:
        self.mean += (count - self.mean) / 16

    def left(self, stream: RoutedStream) -> float:
        """Tokens of prompt and output that a stream still needs."""
        request, done = stream.request, len(stream.output_ids)
        limit = math.inf if request.max_tokens is None else request.max_tokens
        output = max(1.0, min(self.mean, limit) - done)
        return output + (0 if stream.begun else len(request.prompt_ids) + done)


def wait_for_room(streams: Iterable[RoutedStream], outputs: Outputs, rate: float) -> float:
    """Seconds until one of these streams has ended, from 1: what they need, one by one."""
    left = [outputs.left(stream) for stream in streams]
    if not left or rate <= 0:
        return 10.0 if left else 1.0
    return min(_LONGEST, max(1.0, math.ceil(sum(left) / rate / len(left))))


def wait_for_start(streams: Iterable[RoutedStream], outputs: Outputs, rate: float) -> float:
    """Seconds until those of these streams that have not begun have been served."""
    left = sum(outputs.left(stream) for stream in streams if not stream.begun)
    return min(_LONGEST, left / rate) if rate > 0 else 0.0
