"""Seconds that many waits took, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """Of waits, in seconds; all zero where there were none.

    Attributes:
        count: how many waits.
        p50, p90, p99: as many percent of the waits were no longer (linear between neighbours).
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    largest: float


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Summed up."""
    if not len(seconds):
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    values = np.asarray(seconds, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Percentiles(len(values), float(values.mean()), p50, p90, p99, float(values.max()))
