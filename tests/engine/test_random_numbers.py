"""The sampler's random numbers: uniform, and those that Philox is published to give."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.engine.sampler import (
    uniform,
)


@pytest.mark.parametrize("vary", ["position", "seed"])
def test_uniform_numbers_look_uniform_and_independent(vary: str) -> None:
    count = 20_000
    numbers = np.array(
        [uniform(11, index) if vary == "position" else uniform(index, 11) for index in range(count)]
    )
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert len(set(numbers.tolist())) == count
    assert abs(numbers.mean() - 1 / 2) < 4 / math.sqrt(12 * count)
    assert abs(numbers.var() - 1 / 12) < 4 / math.sqrt(180 * count)
    # Kolmogorov and Smirnov's statistic at the level 0.001.
    steps = np.arange(count + 1) / count
    ordered = np.sort(numbers)
    distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(count)
    correlation = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(correlation) < 4 / math.sqrt(count)


_MASK = (1 << 64) - 1


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x64-10 as its authors describe it (Salmon et al. 2011, section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (product1 >> 64) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 64) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c0, c1, c2, c3


# The known answers of Random123 for philox4x64 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (_MASK, _MASK, _MASK, _MASK),
        (_MASK, _MASK),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox(counter, key) == answer
    # NumPy counts up before it makes a block.
    whole = sum(word << (64 * index) for index, word in enumerate(counter))
    before = np.random.Philox(
        counter=(whole - 1) % (1 << 256), key=key[0] | key[1] << 64
    ).random_raw(4)
    assert tuple(int(word) for word in before) == answer


@given(st.integers(0, _MASK), st.integers(0, 1 << 40))
def test_uniform_is_philox_of_seed_and_position(seed: int, position: int) -> None:
    word = philox((position + 1, 0, 0, 0), (seed, 0))[0]
    assert uniform(seed, position) == (word >> 11) / (1 << 53)


def test_positions_of_one_seed_and_seeds_of_one_position_differ() -> None:
    numbers = [uniform(seed, position) for seed in range(20) for position in range(20)]
    assert all(first != second for first, second in pairwise(sorted(numbers)))
