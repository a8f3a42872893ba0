"""How many requests and tokens a caller may use in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from firstlight.server.api_error import RATE_LIMIT, ApiError
from firstlight.server.api_keys import Caller


@dataclass
class Allowance:
    """Fills evenly up to a minute's worth (a token bucket). Tokens are known only after they
    were used, so it may fall below zero; then nothing more is given until it is above again.

    Attributes:
        per_minute: how much comes back in a minute, and most that there ever is.
        left: what is there, at `since`.
    """

    per_minute: int
    since: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = float(self.per_minute)

    def fill(self, now: float) -> None:
        """Add what has come back."""
        gained = (now - self.since) * self.per_minute / 60
        self.left, self.since = min(self.per_minute, self.left + gained), now

    def wait(self, wanted: float = 1.0) -> float:
        """Seconds until so much is there."""
        return max(0.0, (wanted - self.left) * 60 / self.per_minute)

    @property
    def full_after(self) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self.left) * 60 / self.per_minute


class RateLimits:
    """The allowances of all callers, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, dict[str, Allowance]] = {}

    def take(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            ApiError: 429, since the caller has none left, or has used more tokens than it may.
        """
        allowances = self._of(caller)
        for kind, allowance in allowances.items():
            if allowance.left < 1:
                wait = allowance.wait()
                raise ApiError(
                    429,
                    f"This key may use {allowance.per_minute} {kind} a minute. "
                    f"Try again in {wait:.1f} s.",
                    RATE_LIMIT,
                    None,
                    "rate_limit_exceeded",
                    {"retry-after": str(int(wait) + 1)},
                )
        if "requests" in allowances:
            allowances["requests"].left -= 1

    def use(self, caller: Caller, tokens: int) -> None:
        """Count tokens, read or written."""
        allowance = self._of(caller).get("tokens")
        if allowance is not None:
            allowance.left -= tokens

    def headers(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """What OpenAI's API says of the limits; nothing where there are none."""
        return [
            (f"x-ratelimit-{name}-{kind}".encode(), text.encode())
            for kind, allowance in self._of(caller).items()
            for name, text in (
                ("limit", str(allowance.per_minute)),
                ("remaining", str(max(0, int(allowance.left)))),
                ("reset", f"{allowance.full_after:.3f}s"),
            )
        ]

    def _of(self, caller: Caller) -> dict[str, Allowance]:
        now = self._clock()
        found = self._allowances.get(caller.name)
        if found is None:
            limits = {"requests": caller.requests_per_minute, "tokens": caller.tokens_per_minute}
            found = self._allowances[caller.name] = {
                kind: Allowance(limit, now) for kind, limit in limits.items() if limit is not None
            }
        for allowance in found.values():
            allowance.fill(now)
        return found
