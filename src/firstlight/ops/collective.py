"""What ranks that compute one model together do at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Tensor = Any


class Collective(Protocol):
    """One rank's end of it. Every rank calls the same methods in the same order, with tensors of the
    same shape, on its own backend; whatever keeps one from doing so is an error of all."""

    def sum(self, part: Tensor) -> Tensor:
        """The sum of every rank's part, float32 [n, columns], to the bit the same on all of them.
        The part may be overwritten."""

    def join_columns(self, part: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's part, float32 [n, widths[rank]], side by side: [n, sum of the widths]."""
