"""The helper that other tests take their weights from."""

from __future__ import annotations

import numpy as np
import pytest

from firstlight.formats.registry import get_format, known_formats
from tests.support.weights import random_weight


@pytest.mark.parametrize("name", [*known_formats(), "int8", "int4"])
def test_random_weights_are_finite_and_of_ordinary_size(name: str) -> None:
    weight = random_weight(name, 33, 1024, seed=4)
    values = weight.values()
    assert np.isfinite(values).all()
    assert 0.05 < np.sqrt(np.mean(np.square(values, dtype=np.float64))) < 8
    assert np.abs(values).max() <= 8
    assert (values < 0).any()
    assert (values > 0).any()


@pytest.mark.parametrize("name", known_formats())
def test_random_weights_depend_on_the_seed_only(name: str) -> None:
    first, again, other = (random_weight(name, 3, 512, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.data, other.data)


@pytest.mark.parametrize("name", known_formats())
def test_random_weights_may_be_empty_or_one_block(name: str) -> None:
    block = get_format(name).block_values
    assert random_weight(name, 0, block).values().shape == (0, block)
    assert random_weight(name, 3, 0).values().shape == (3, 0)
    assert np.isfinite(random_weight(name, 1, block, seed=3).values()).all()
