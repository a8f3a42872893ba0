"""How far conversion has moved the values of a matrix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Square:
    """Sums over a matrix: of its squared values, and of their squared changes."""

    values: float
    errors: float

    @property
    def relative(self) -> float:
        """Root mean square of the change over that of the values."""
        return float((self.errors / self.values) ** 0.5) if self.values else 0.0

    def __add__(self, other: Square) -> Square:
        return Square(self.values + other.values, self.errors + other.errors)
