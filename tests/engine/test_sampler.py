"""The sampler against transformers' processors, published formulas and published vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from firstlight.engine.parameters import SamplingParameters
from firstlight.engine.sampler import (
    adjust,
    distribution,
    largest,
    log_probabilities,
    sample,
)
from firstlight.errors import DeviceError, RequestError

_LARGEST = float(np.finfo(np.float32).max)

_values = st.one_of(
    st.floats(-30, 30, width=32),
    st.floats(-_LARGEST, _LARGEST, width=32),
    st.just(-math.inf),
    st.sampled_from([0.0, 1.0, 1.0, -1.0, _LARGEST, -_LARGEST]),
)
logits_with_ties = (
    st.lists(_values, min_size=1, max_size=40)
    .filter(lambda values: max(values) > -math.inf)
    .map(lambda values: np.array(values, np.float32))
)
distinct_logits = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40, unique=True).map(
    lambda values: np.array(values, np.float32)
)

truncations = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 10.0),
        "top_k": st.one_of(st.just(0), st.integers(1, 45)),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    }
).map(lambda given: SamplingParameters(**given))


def full_distribution(logits: np.ndarray, parameters: SamplingParameters) -> np.ndarray:
    """Probabilities of the whole vocabulary."""
    tokens, probabilities = distribution(logits.astype(np.float64), parameters)
    assert len(set(tokens.tolist())) == len(tokens)
    full = np.zeros(len(logits))
    full[tokens] = probabilities
    return full


def reference_distribution(logits: np.ndarray, parameters: SamplingParameters) -> np.ndarray:
    """The same by transformers, in the order of its `generate`, in float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(parameters.temperature)])
    if parameters.top_k:
        warpers.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1.0:
        warpers.append(TopPLogitsWarper(parameters.top_p))
    if parameters.min_p > 0.0:
        warpers.append(MinPLogitsWarper(parameters.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    return warpers(None, scores).softmax(-1)[0].numpy()


def on_an_edge(logits: np.ndarray, parameters: SamplingParameters) -> bool:
    """Whether a token stands so close to a limit that rounding may decide about it."""
    scaled = np.sort(logits.astype(np.float64) / parameters.temperature)[::-1]
    scaled = scaled[: parameters.top_k or None]
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    margins = [*np.abs(before - parameters.top_p)]
    margins += [*np.abs(probabilities[1:] / probabilities[0] - parameters.min_p)]
    return min(margins) < 1e-9


@given(distinct_logits, truncations)
def test_truncation_equals_transformers(logits: np.ndarray, parameters: SamplingParameters) -> None:
    assume(not on_an_edge(logits, parameters))
    np.testing.assert_allclose(
        full_distribution(logits, parameters),
        reference_distribution(logits, parameters),
        rtol=1e-9,
        atol=1e-15,
    )


@given(logits_with_ties, truncations)
def test_truncation_holds_for_ties_masks_and_huge_values(
    logits: np.ndarray, parameters: SamplingParameters
) -> None:
    tokens, probabilities = distribution(logits.astype(np.float64), parameters)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= 0).all()
    assert not probabilities[np.isneginf(logits[tokens])].any()
    # The likeliest token always stays, and none stays that is less likely than one left out.
    assert logits.argmax() in tokens
    left_out = np.setdiff1d(np.arange(len(logits)), tokens)
    assert all(logits[left_out] <= logits[tokens].min())
    if parameters.top_k:
        assert len(tokens) <= parameters.top_k
        # Of equal ones the lowest ids stay.
        equal = np.flatnonzero(logits == logits[tokens].min())
        chosen = np.intersect1d(equal, tokens)
        assert chosen.tolist() == equal[: len(chosen)].tolist()
    assert (probabilities >= parameters.min_p * probabilities.max() * (1 - 1e-12)).all()


@given(logits_with_ties, st.integers(1, 45))
def test_top_k_keeps_the_values_that_transformers_keeps(logits: np.ndarray, k: int) -> None:
    parameters = SamplingParameters(temperature=1.0, top_k=k)
    tokens, _ = distribution(logits.astype(np.float64), parameters)
    scores = TopKLogitsWarper(k, filter_value=math.nan)(None, torch.from_numpy(logits)[None])[0]
    kept = scores[~scores.isnan()].numpy()  # with every value that equals the k-th
    assert sorted(logits[tokens]) == sorted(kept)[-k:]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_top_p_keeps_as_much_of_ties_as_transformers(values: list[float], p: float) -> None:
    logits = np.array(values, np.float32)
    parameters = SamplingParameters(temperature=1.0, top_p=p)
    assume(not on_an_edge(logits, parameters))
    tokens, _ = distribution(logits.astype(np.float64), parameters)
    scores = TopPLogitsWarper(p)(None, torch.from_numpy(logits.astype(np.float64))[None])[0]
    assert sorted(logits[tokens]) == sorted(scores[scores > -math.inf].tolist())


def test_top_p_keeps_no_more_than_reach_it() -> None:
    parameters = SamplingParameters(temperature=1.0, top_p=0.5)
    tokens, probabilities = distribution(np.zeros(4), parameters)  # a quarter each, exactly
    assert (tokens.tolist(), probabilities.tolist()) == ([0, 1], [0.5, 0.5])


def test_top_p_of_a_large_vocabulary_equals_transformers() -> None:
    # Large enough that what the nucleus need not sort is nearly all there is.
    logits = (4 * np.random.default_rng(0).standard_normal(50_000)).astype(np.float32)
    for p in (0.001, 0.5, 0.9, 0.999, 0.9999999):
        parameters = SamplingParameters(temperature=0.7, top_p=p)
        ours = full_distribution(logits, parameters)
        reference = reference_distribution(logits, parameters)
        assert (ours > 0).sum() == (reference > 0).sum()
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-15)


@given(
    logits_with_ties,
    st.lists(st.integers(0, 39), min_size=1, max_size=20),
    st.lists(st.integers(0, 39), max_size=20),
    st.floats(0.1, 10.0),
)
def test_repetition_penalty_equals_transformers(
    logits: np.ndarray, prompt: list[int], output: list[int], penalty: float
) -> None:
    prompt, output = ([token % len(logits) for token in tokens] for tokens in (prompt, output))
    ours = adjust(logits, SamplingParameters(repetition_penalty=penalty), prompt, output)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    reference = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), scores)
    np.testing.assert_array_equal(ours, reference[0].numpy())


@given(
    logits_with_ties,
    st.lists(st.integers(0, 39), max_size=30),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_presence_and_frequency_penalties_follow_the_published_formula(
    logits: np.ndarray, output: list[int], presence: float, frequency: float
) -> None:
    output = [token % len(logits) for token in output]
    parameters = SamplingParameters(presence_penalty=presence, frequency_penalty=frequency)
    # mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, where c counts
    # what was sampled so far, the prompt not included (OpenAI's API reference).
    counts = [output.count(token) for token in range(len(logits))]
    expected = [
        float(mu) - c * frequency - float(c > 0) * presence
        for mu, c in zip(logits, counts, strict=True)
    ]
    ours = adjust(logits, parameters, list(range(len(logits))), output)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_logit_bias_adds_and_can_rule_out_or_force() -> None:
    logits = np.array([1.0, 3.0, 2.0, 0.0], np.float32)
    parameters = SamplingParameters(logit_bias={1: -100.0, 0: 0.5})
    np.testing.assert_array_equal(adjust(logits, parameters, [], []), [1.5, -97.0, 2.0, 0.0])
    assert sample(logits, parameters, [], [], 0) == 2
    forced = SamplingParameters(temperature=1.0, logit_bias={3: 1e4})
    assert {sample(logits, forced, [], [], position) for position in range(50)} == {3}
    with pytest.raises(RequestError, match=r"logit_bias\[4\].*ids 0 to 3"):
        adjust(logits, SamplingParameters(logit_bias={4: 1.0}), [], [])


def test_greedy_takes_the_likeliest_and_of_equal_ones_the_first() -> None:
    logits = np.array([0.0, 5.0, -math.inf, 5.0], np.float32)
    assert sample(logits, SamplingParameters(), [], [], 3) == 1


@given(logits_with_ties, truncations, st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 31))
def test_a_draw_is_possible_and_depends_on_its_arguments_alone(
    logits: np.ndarray, parameters: SamplingParameters, seed: int, position: int
) -> None:
    given_values = {name: getattr(parameters, name) for name in ("temperature", "top_k", "top_p")}
    seeded = SamplingParameters(**given_values, min_p=parameters.min_p, seed=seed)
    before = logits.copy()
    prompt, output = [0], [len(logits) - 1]
    token = sample(logits, seeded, prompt, output, position)
    sample(logits, SamplingParameters(temperature=1.0, seed=1), [], [], 17)  # no state is left
    assert sample(logits, seeded, prompt, output, position) == token
    assert full_distribution(adjust(logits, seeded, prompt, output), seeded)[token] > 0
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.999999])
def test_no_random_number_draws_what_is_impossible(
    number: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstlight.engine.sampler.uniform", lambda *_: number)
    impossible = [-math.inf] * 7
    possible = np.random.default_rng(0).standard_normal(50).tolist()
    logits = np.array(impossible + possible + impossible, np.float32)
    token = sample(logits, SamplingParameters(temperature=1.0, top_p=top_p), [], [], 0)
    assert 7 <= token < 57


@given(logits_with_ties, st.floats(0.0, 1e-3, exclude_min=True))
def test_a_vanishing_temperature_is_greedy_where_the_likeliest_stands_apart(
    logits: np.ndarray, temperature: float
) -> None:
    first, *rest = np.sort(logits.astype(np.float64))[::-1]
    assume(not rest or first - rest[0] > 1.0)
    parameters = SamplingParameters(temperature=temperature)
    assert sample(logits, parameters, [], [], 0) == logits.argmax()


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(temperature=1.0),
        SamplingParameters(temperature=0.6, top_k=9),
        SamplingParameters(temperature=1.7, top_p=0.8),
        SamplingParameters(temperature=1.2, min_p=0.05),
        SamplingParameters(temperature=1.0, top_k=10, top_p=0.9, min_p=0.1),
    ],
    ids=["plain", "top_k", "top_p", "min_p", "all"],
)
@pytest.mark.parametrize("vary", ["position", "seed"])
def test_drawn_frequencies_match_the_distribution(
    parameters: SamplingParameters, vary: str
) -> None:
    logits = (1.5 * np.random.default_rng(5).standard_normal(16)).astype(np.float32)
    expected = reference_distribution(logits, parameters)
    draws = 4000
    counts = np.zeros(16)
    for index in range(draws):
        seed, position = (3, index) if vary == "position" else (index, 3)
        changed = SamplingParameters(
            parameters.temperature, parameters.top_k, parameters.top_p, parameters.min_p, seed=seed
        )
        counts[sample(logits, changed, [], [], position)] += 1
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - draws * expected)[possible] ** 2 / (draws * expected[possible])).sum()
    # Wilson and Hilferty's approximation of the 99.9th percentile. The draws are always the same,
    # so that this cannot fail by chance.
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


@given(logits_with_ties, st.integers(0, 45))
def test_largest(logits: np.ndarray, count: int) -> None:
    by_hand = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:count]
    assert largest(logits, count).tolist() == by_hand


@given(logits_with_ties)
def test_log_probabilities_equal_torch(logits: np.ndarray) -> None:
    reference = torch.from_numpy(logits.astype(np.float64)).log_softmax(-1).float()
    np.testing.assert_allclose(log_probabilities(logits), reference.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        ([1.0, math.nan, 0.0], "NaN"),
        ([math.nan] * 3, "NaN"),
        ([1.0, math.inf, 0.0], "infinite"),
        ([-math.inf] * 3, "every logit is -inf"),
    ],
)
def test_logits_that_are_no_distribution_are_refused(
    logits: list[float], reason: str, temperature: float
) -> None:
    parameters = SamplingParameters(temperature=temperature, top_k=2, top_p=0.9)
    with pytest.raises(DeviceError, match=f"the model's output.*{reason}.*device numpy"):
        sample(np.array(logits, np.float32), parameters, [], [], 0)


OUT_OF_RANGE = {
    "temperature": [-0.1, math.nan, math.inf, "warm", None, True, 10**400],
    "top_k": [-1, 1.5, 1 << 40, math.nan, "3"],
    "top_p": [0.0, -0.5, 1.1, math.nan, None],
    "min_p": [-0.1, 1.5, math.nan],
    "repetition_penalty": [0.0, -1.0, math.inf, math.nan],
    "presence_penalty": [math.nan, math.inf, 1e9],
    "frequency_penalty": [math.nan, -math.inf, "1"],
    "seed": [-1, 1 << 64, 0.5, None],
    "logit_bias": [{0: math.nan}, {0: math.inf}, {"0": 1.0}, {-1: 1.0}, {0.5: 1.0}, [1, 2]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in OUT_OF_RANGE.items() for value in values],
)
def test_a_parameter_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParameters(**{name: value})  # type: ignore[arg-type]


def test_numpy_scalars_and_bounds_are_taken() -> None:
    SamplingParameters(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        top_p=1,
        min_p=1.0,
        seed=(1 << 64) - 1,
        logit_bias={np.int32(3): np.float32(1)},  # type: ignore[dict-item]
    )
