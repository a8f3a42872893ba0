"""Which token a random number draws from logits, in NumPy; see the op `choose_tokens`."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


class Truncation(Protocol):
    """What is drawn from, in numbers; `SamplingParameters` says what they mean."""

    @property
    def temperature(self) -> float: ...

    @property
    def top_k(self) -> int: ...

    @property
    def top_p(self) -> float: ...

    @property
    def min_p(self) -> float: ...


def draw(adjusted: Floats | Doubles, parameters: Truncation, number: float) -> int:
    """The token that a random number in [0, 1) draws.

    Args:
        adjusted: float32 or float64 [vocabulary], at least one of them finite.
        parameters: with a temperature above 0.
    """
    if len(adjusted) >= _LARGE and not _truncates(parameters, len(adjusted)):
        return _draw_from_all(adjusted, parameters.temperature, number)
    tokens, probabilities = distribution(adjusted, parameters)
    cumulative = np.cumsum(probabilities)
    # Below the last sum for every number below one, and past every token of probability zero.
    place = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(tokens[place])


def distribution(adjusted: Floats | Doubles, parameters: Truncation) -> tuple[Indices, Doubles]:
    """The tokens left after temperature and truncation, and their probabilities.

    Args:
        adjusted: float32 or float64 [vocabulary], at least one of them finite.

    Returns:
        Token ids int64 [m], and float64 [m] that sum to one. After top-k or top-p the ids stand by
        falling logit, equal ones by id; otherwise in order.
    """
    rest = 0.0
    if 0 < parameters.top_k < len(adjusted):
        tokens = largest(adjusted, parameters.top_k)
        logits = adjusted[tokens]
    elif len(adjusted) >= _LARGE and _truncates(parameters, len(adjusted)):
        tokens, rest = _likely(adjusted, parameters)
        logits = adjusted[tokens]
    else:
        tokens, logits = np.arange(len(adjusted)), adjusted
    # One array from here on: with a large vocabulary, fresh ones cost more than the arithmetic.
    probabilities = logits.astype(np.float64)
    # The largest is taken off first, so that no temperature, however small, overflows it.
    probabilities -= probabilities.max()
    if parameters.temperature != 1.0:
        with np.errstate(over="ignore"):
            probabilities /= parameters.temperature
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum() + rest
    kept: Indices | NDArray[np.bool_]
    if parameters.top_p < 1.0:
        kept = _nucleus(logits, probabilities, parameters.top_p)
        tokens, probabilities = tokens[kept], probabilities[kept]
    if parameters.min_p > 0.0:
        kept = probabilities >= parameters.min_p * probabilities.max()
        tokens, probabilities = tokens[kept], probabilities[kept]
    probabilities /= probabilities.sum()
    return tokens, probabilities


# From so many tokens on, passes over all of them in float64 would take longer than a small model's
# step; up to there nothing is saved.
_LARGE = 32768
_BLOCK = 512  # tokens whose weights are summed before the block of the next token is looked for


def _truncates(parameters: Truncation, vocabulary: int) -> bool:
    return 0 < parameters.top_k < vocabulary or parameters.top_p < 1.0 or parameters.min_p > 0.0


def _weights(adjusted: Floats | Doubles, temperature: float) -> Floats:
    """exp((logit - largest) / temperature), float32: within 1e-6 of it, for a few percent of the
    time that float64 takes."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Floats = (adjusted - adjusted.max()).astype(np.float32, copy=False)
        weights /= np.float32(max(temperature, 1e-30))
        np.exp(weights, out=weights)
    return weights


def _likely(adjusted: Floats | Doubles, parameters: Truncation) -> tuple[Indices, float]:
    """Tokens that top_p or min_p may keep, in order, and the sum of all other tokens' weights.

    What is left out for top_p sums to less than half of 1 - top_p, see `_nucleus`, so that the
    nucleus is complete without it, and what float32 does to that sum is far below 1 - top_p.
    """
    weights = _weights(adjusted, parameters.temperature)
    total = float(weights.sum(dtype=np.float64))
    if parameters.top_p < 1.0:
        least = 0.5 * (1.0 - parameters.top_p) / len(weights) * total
    else:
        least = 0.999 * parameters.min_p
    tokens = np.flatnonzero(weights >= np.float32(least))
    return tokens, total - float(weights[tokens].sum(dtype=np.float64))


def _draw_from_all(adjusted: Floats | Doubles, temperature: float, number: float) -> int:
    """A token of the whole vocabulary: first its block, then the token in it."""
    weights = _weights(adjusted, temperature)
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).astype(np.float64)
    after = np.cumsum(blocks)
    drawn = number * after[-1]
    block = int(np.searchsorted(after, drawn, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
    within = np.cumsum(inside)
    share = (drawn - (after[block] - blocks[block])) / blocks[block]
    index = int(np.searchsorted(within, share * within[-1], side="right"))
    # Rounding may lead past the last token of the block that has any weight.
    return block * _BLOCK + min(index, int(np.flatnonzero(inside)[-1]))


def largest(values: Doubles | Floats, count: int) -> Indices:
    """Indices of the `count` largest values, or all if fewer; falling, equal ones by index."""
    candidates = np.arange(len(values))
    if count < len(values):
        if count == 0:
            return candidates[:0]
        # Values equal to the last are all kept until the sort decides by index.
        candidates = np.flatnonzero(values >= _bound(values, count))
        among = values[candidates]
        candidates = candidates[among >= np.partition(among, -count)[-count]]
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


# Columns that a large vocabulary is laid out in to look for its largest values.
_COLUMNS = 4096


def _bound(values: Doubles | Floats, count: int) -> float:
    """A number that at least `count` of the values reach, and few others where there are many.

    As many columns have a largest value of at least the bound; finding those takes one quick pass,
    partitioning all values a hundred times as long.
    """
    if 4 * count > _COLUMNS or len(values) < 8 * _COLUMNS:
        return -math.inf
    whole = len(values) // _COLUMNS * _COLUMNS
    tops = values[:whole].reshape(-1, _COLUMNS).max(axis=0)
    return float(np.partition(tops, -count)[-count])


def _nucleus(logits: Floats | Doubles, probabilities: Doubles, top_p: float) -> Indices:
    """Indices of the fewest likeliest whose probabilities reach top_p; falling."""
    # Whatever is less likely than (1 - top_p) / n sums to less than 1 - top_p, so that the nucleus
    # is complete without it; it need not be sorted. Half of that, lest rounding decide.
    likely = np.flatnonzero(probabilities >= 0.5 * (1.0 - top_p) / len(probabilities))
    falling = likely[np.argsort(-logits[likely], kind="stable")]
    before = np.cumsum(probabilities[falling]) - probabilities[falling]
    return falling[: max(1, int(np.count_nonzero(before < top_p)))]
