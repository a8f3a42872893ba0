"""Tokens chosen on a device of PyTorch's are those that the host's sampler chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.engine.parameters import SamplingParameters
from firstlight.engine.sampler import choice_of, sample
from firstlight.ops.choose_tokens import TokenChoice, choose_tokens

torch = pytest.importorskip("torch")

_ROWS = 120


def _kernels(doubles: bool) -> Any:
    from firstlight.backends.torch.choosing import ChoosingKernels
    from firstlight.backends.torch.transfer import Transfer

    return ChoosingKernels(Transfer(torch.device("cpu")), doubles)


def _parameters(generator: np.random.Generator, seed: int) -> SamplingParameters:
    def sometimes(value: Any, otherwise: Any) -> Any:
        return value if generator.random() < 0.5 else otherwise

    return SamplingParameters(
        temperature=sometimes(float(generator.uniform(0.2, 2.0)), 1.0) * (seed % 9 > 0),
        top_k=sometimes(int(generator.integers(1, 60)), 0),
        top_p=sometimes(float(generator.uniform(0.2, 1.0)), 1.0),
        min_p=sometimes(float(generator.uniform(0.0, 0.2)), 0.0),
        repetition_penalty=sometimes(1.3, 1.0),
        presence_penalty=sometimes(0.7, 0.0),
        frequency_penalty=sometimes(0.2, 0.0),
        logit_bias={3: 2.0, 40: -5.0} if seed % 4 == 0 else {},
        seed=seed,
    )


def _asked(vocabulary: int) -> tuple[Any, list[Any], list[int]]:
    """Logits of many rows, how their tokens are to be chosen, and what the sampler chooses."""
    generator = np.random.default_rng(vocabulary)
    logits = (3 * generator.standard_normal((_ROWS, vocabulary))).astype(np.float32)
    choices, expected = [], []
    for row in range(_ROWS):
        parameters = _parameters(generator, row)
        prompt, output = (
            generator.integers(0, vocabulary, size=size).tolist() for size in (20, 15)
        )
        allowed = generator.random(vocabulary) < 0.3 if row % 7 == 0 else None
        asked = parameters, prompt, output, len(prompt) + len(output), allowed
        choices.append(choice_of(*asked))
        expected.append(sample(logits[row], *asked))
    return logits, choices, expected


@pytest.mark.parametrize("vocabulary", [61, 1009, 40_000])
def test_the_same_tokens_for_the_same_seeds(vocabulary: int) -> None:
    logits, choices, expected = _asked(vocabulary)
    found = _kernels(doubles=True).choose_tokens(torch.from_numpy(logits), tuple(choices))
    assert found.tolist() == expected
    assert len(set(expected)) > 25


def test_without_float64_nearly_always_the_same() -> None:
    logits, choices, expected = _asked(1009)
    found = _kernels(doubles=False).choose_tokens(torch.from_numpy(logits), tuple(choices))
    assert found.dtype == torch.int32
    assert np.mean(np.array(found.tolist()) == expected) > 0.98


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    logits, choices, expected = _asked(1009)
    kernels = _kernels(doubles=True)
    for row in range(0, _ROWS, 7):
        given = torch.from_numpy(logits[row : row + 1])
        assert kernels.choose_tokens(given, (choices[row],)).tolist() == [expected[row]]


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("doubles", [True, False])
@pytest.mark.parametrize("choice", [{}, {"top_k": 9}, {"top_p": 0.999999}, {"min_p": 1e-9}])
def test_no_number_draws_what_is_impossible(
    number: float, doubles: bool, choice: dict[str, Any]
) -> None:
    logits = np.full((1, 64), -np.inf, np.float32)
    logits[0, 7:57] = np.random.default_rng(0).standard_normal(50)
    choices = (TokenChoice(1.0, number=number, **choice),)
    (token,) = _kernels(doubles).choose_tokens(torch.from_numpy(logits), choices).tolist()
    assert 7 <= token < 57
    if doubles:
        assert token == choose_tokens(logits, choices)[0]


def test_draws_are_distributed_as_the_probabilities_say() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    numbers = (np.arange(1000) + 0.5) / 1000
    choices = tuple(TokenChoice(1.0, number=float(number)) for number in numbers)
    found = _kernels(doubles=True).choose_tokens(
        torch.from_numpy(np.tile(logits, (1000, 1))), choices
    )
    assert np.bincount(found.numpy()).tolist() == [500, 250, 125, 125]
