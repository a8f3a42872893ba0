"""What ranks that compute one model together do at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Tensor = Any


class RanksError(Exception):
    """Another rank has not taken part: it has ended, or has not come in time."""


class Collective(Protocol):
    """One rank's end of it.

    Every rank calls the same methods in the same order, with tensors of the same shape, on its own
    backend. Whatever keeps one from doing so is a `RanksError` of the others.
    """

    def sum(self, part: Tensor) -> Tensor:
        """The sum of every rank's part, float32 [n, columns], to the bit the same on all of them.
        The part may be overwritten."""

    def join_columns(self, part: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's part, float32 [n, widths[rank]], side by side: [n, sum of the widths]."""


class RankGroup(Collective, Protocol):
    """A collective that this process has joined."""

    def leave(self) -> None:
        """End it at once, from any thread: what waits in it, here or on other ranks, fails."""
