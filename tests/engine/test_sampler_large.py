"""With a large vocabulary the sampler takes short cuts; its results are those of the plain way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firstlight.engine.parameters import SamplingParameters
from firstlight.engine.sampler import adjust, distribution, largest, sample, uniform

VOCABULARIES = (32768, 32768 + 4095, 151_936, 262_144)


def _logits(vocabulary: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(vocabulary)
    logits = generator.standard_normal(vocabulary, dtype=np.float32) * np.float32(4)
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "mostly impossible":
        logits[generator.permutation(vocabulary)[30:]] = -math.inf
    elif kind == "rising":
        logits.sort()
    elif kind == "all equal":
        logits[:] = 1.5
    return logits


@pytest.mark.parametrize("kind", ["random", "ties", "mostly impossible", "rising", "all equal"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest(vocabulary: int, kind: str, dtype: type) -> None:
    logits = _logits(vocabulary, kind).astype(dtype)
    order = np.argsort(-logits, kind="stable")
    for count in (0, 1, 2, 64, 1024, 1025, 5000, vocabulary):
        np.testing.assert_array_equal(largest(logits, count), order[:count])


PARAMETERS = (
    {},
    {"temperature": 0.7},
    {"top_k": 64, "top_p": 0.95},
    {"top_k": 40, "min_p": 0.05, "temperature": 1.7},
    {"top_p": 0.9, "temperature": 0.6},
    {"min_p": 0.1},
    {"top_k": 20, "repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.25, "top_p": 0.99},
)


@pytest.mark.parametrize("given", PARAMETERS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_the_plain_way(given: dict[str, float], kind: str) -> None:
    parameters = SamplingParameters(**{"temperature": 1.0, "seed": 5, **given})  # type: ignore[arg-type]
    logits, prompt, output = _logits(151_936, kind), [5, 77, 5], [9, 77, 9]
    adjusted = adjust(logits, parameters, prompt, output)
    tokens, probabilities = _plainly(adjusted, parameters)
    found = distribution(adjusted, parameters)
    assert found[0].tobytes() == tokens.tobytes()
    if parameters.top_k:
        assert found[1].tobytes() == probabilities.tobytes()
    else:
        np.testing.assert_allclose(found[1], probabilities, rtol=1e-12)
    cumulative = np.cumsum(probabilities)
    for position in range(5):
        draw = uniform(5, position) * cumulative[-1]
        expected = tokens[np.searchsorted(cumulative, draw, side="right")]
        assert sample(logits, parameters, prompt, output, position) == expected


def _plainly(adjusted: np.ndarray, parameters: SamplingParameters) -> tuple[np.ndarray, np.ndarray]:
    """As `distribution` says, step by step, with a sort of everything."""
    tokens = np.arange(len(adjusted))
    if parameters.top_k:
        tokens = np.argsort(-adjusted, kind="stable")[: parameters.top_k]
    weights = np.exp((adjusted[tokens] - adjusted.max()) / parameters.temperature)
    probabilities = weights / weights.sum()
    if parameters.top_p < 1.0:
        falling = np.argsort(-adjusted[tokens], kind="stable")
        sums = np.cumsum(probabilities[falling])
        falling = falling[: 1 + np.count_nonzero(sums[:-1] < parameters.top_p)]
        tokens, probabilities = tokens[falling], probabilities[falling]
    if parameters.min_p:
        kept = probabilities >= parameters.min_p * probabilities.max()
        tokens, probabilities = tokens[kept], probabilities[kept]
    return tokens, probabilities / probabilities.sum()


@pytest.mark.parametrize("kind", ["random", "ties", "all equal"])
def test_the_likeliest(kind: str) -> None:
    logits = _logits(262_144, kind)
    expected = int(np.flatnonzero(logits == logits.max())[0])
    assert sample(logits, SamplingParameters(), [1], [2], 3) == expected
    banned = SamplingParameters(logit_bias={expected: -1e4})
    assert sample(logits, banned, [1], [2], 3) != expected


@pytest.mark.parametrize("kind", ["random", "ties", "mostly impossible", "all equal"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 3.0])
def test_drawing_from_all_tokens(vocabulary: int, kind: str, temperature: float) -> None:
    """Where the short cut draws another token than the plain way, the random number lies within
    the rounding of the sums: nearly never, and then next to it."""
    logits = _logits(vocabulary, kind)
    parameters = SamplingParameters(temperature=temperature, seed=11)
    tokens, probabilities = _plainly(logits.astype(np.float64), parameters)
    cumulative = np.cumsum(probabilities)
    others = 0
    for position in range(200):
        token = sample(logits, parameters, [1], [2], position)
        assert probabilities[token] > 0
        draw = uniform(11, position) * cumulative[-1]
        expected = int(tokens[np.searchsorted(cumulative, draw, side="right")])
        others += token != expected
        before = cumulative[token] - probabilities[token]
        assert before - 1e-6 <= draw <= cumulative[token] + 1e-6
    assert others <= 12
