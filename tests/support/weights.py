"""Random weights by a format's name and a seed, for tests of whatever consumes them."""

from __future__ import annotations

import numpy as np

from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.verify import random_weights


def random_weight(format_name: str, rows: int, columns: int, seed: int = 0) -> Weight:
    """As `verify.random_weights.random_weight`; equal arguments give equal weights."""
    generator = np.random.default_rng(seed)
    return random_weights.random_weight(get_format(format_name), rows, columns, generator)
