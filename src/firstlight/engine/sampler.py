"""The next token, as a pure function of logits, parameters, history, seed and position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firstlight.engine.parameters import SamplingParameters
from firstlight.errors import DeviceError, RequestError
from firstlight.formats.base import Floats

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


def sample(
    logits: Floats,
    parameters: SamplingParameters,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    position: int,
    allowed: NDArray[np.bool_] | None = None,
    likeliest: int | None = None,
) -> int:
    """Choose a token.

    The order is: bias, penalties, temperature, top-k, top-p, min-p, then one draw with the random
    number of the seed and the position. So a sequence gives the same tokens alone or in a batch,
    and after it was moved.

    Args:
        logits: float32 [vocabulary]; -inf rules a token out.
        prompt_ids, output_ids: the tokens so far.
        position: of the token to be chosen in its sequence.
        allowed: bool [vocabulary], which tokens may be chosen; None: all.
        likeliest: the index of the largest logit, the first of several, where the caller knows it.

    Returns:
        A token id. Among equally likely tokens the lowest id wins where temperature is 0.

    Raises:
        DeviceError: the logits are no distribution: one is NaN or +inf, or all are -inf.
        RequestError: logit_bias names a token outside the vocabulary, or no token is allowed.
    """
    check_logit_bias(parameters, len(logits))
    if likeliest is None:
        likeliest = int(np.argmax(logits))
    adjusts = _adjusts(parameters)
    _check_largest(float(logits[likeliest]))
    if allowed is not None:
        logits = np.where(allowed, logits, np.float32(-np.inf))
        likeliest = int(np.argmax(logits))
        _check_some_allowed(float(logits[likeliest]))
    if parameters.temperature == 0.0 and not adjusts:
        return likeliest
    adjusted: Floats | Doubles = logits
    if adjusts:
        adjusted = adjust(logits, parameters, prompt_ids, output_ids)
    if parameters.temperature == 0.0:
        return int(np.argmax(adjusted))
    if len(logits) >= _LARGE and not _truncates(parameters, len(logits)):
        return _draw_from_all(adjusted, parameters, position)
    tokens, probabilities = distribution(adjusted, parameters)
    cumulative = np.cumsum(probabilities)
    # Below the last sum for every number below one, and past every token of probability zero.
    draw = uniform(parameters.seed, position) * cumulative[-1]
    return int(tokens[np.searchsorted(cumulative, draw, side="right")])


def check_logit_bias(parameters: SamplingParameters, vocabulary: int) -> None:
    """RequestError where logit_bias names a token outside the vocabulary."""
    for token in parameters.logit_bias:
        if token >= vocabulary:
            raise RequestError(
                f"logit_bias[{token}]",
                f"the vocabulary has ids 0 to {vocabulary - 1}",
                "Use ids of this model's tokenizer",
            )


def _adjusts(parameters: SamplingParameters) -> bool:
    """Whether `adjust` does anything, which takes a pass over the vocabulary."""
    return bool(
        parameters.logit_bias
        or parameters.repetition_penalty != 1.0
        or parameters.presence_penalty
        or parameters.frequency_penalty
    )


def adjust(
    logits: Floats,
    parameters: SamplingParameters,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
) -> Doubles:
    """Logits with bias and penalties, float64 [vocabulary].

    Raises:
        RequestError: logit_bias names a token outside the vocabulary.
    """
    check_logit_bias(parameters, len(logits))
    adjusted = logits.astype(np.float64)
    for token, bias in parameters.logit_bias.items():
        adjusted[token] += bias
    if parameters.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter((*prompt_ids, *output_ids), np.int64))
        penalised = adjusted[seen]
        factor = parameters.repetition_penalty
        adjusted[seen] = np.where(penalised > 0, penalised / factor, penalised * factor)
    if output_ids and (parameters.presence_penalty or parameters.frequency_penalty):
        seen, counts = np.unique(np.asarray(output_ids, np.int64), return_counts=True)
        adjusted[seen] -= parameters.presence_penalty + parameters.frequency_penalty * counts
    return adjusted


def distribution(
    adjusted: Floats | Doubles, parameters: SamplingParameters
) -> tuple[Indices, Doubles]:
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


def _truncates(parameters: SamplingParameters, vocabulary: int) -> bool:
    return 0 < parameters.top_k < vocabulary or parameters.top_p < 1.0 or parameters.min_p > 0.0


def _weights(adjusted: Floats | Doubles, temperature: float) -> Floats:
    """exp((logit - largest) / temperature), float32: within 1e-6 of it, for a few percent of the
    time that float64 takes."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Floats = (adjusted - adjusted.max()).astype(np.float32, copy=False)
        weights /= np.float32(max(temperature, 1e-30))
        np.exp(weights, out=weights)
    return weights


def _likely(adjusted: Floats | Doubles, parameters: SamplingParameters) -> tuple[Indices, float]:
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


def _draw_from_all(
    adjusted: Floats | Doubles, parameters: SamplingParameters, position: int
) -> int:
    """A token of the whole vocabulary: first its block, then the token in it."""
    weights = _weights(adjusted, parameters.temperature)
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).astype(np.float64)
    after = np.cumsum(blocks)
    draw = uniform(parameters.seed, position) * after[-1]
    block = int(np.searchsorted(after, draw, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
    within = np.cumsum(inside)
    share = (draw - (after[block] - blocks[block])) / blocks[block]
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


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a seed and a position.

    The upper 53 bits of the first word that Philox4x64-10 (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3") makes of the key `seed` and the counter `position` + 1; NumPy
    counts up before it makes a block.
    """
    word = np.random.Philox(key=seed, counter=position).random_raw()
    return float(word >> 11) * 2.0**-53


def log_probabilities(logits: Floats) -> Floats:
    """log softmax of logits [..., vocabulary], float32, computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    with np.errstate(over="ignore"):  # what float32 cannot hold is as good as impossible
        return wide.astype(np.float32)


def _check_some_allowed(top: float) -> None:
    if top == -math.inf:
        raise RequestError(
            "the tokens allowed",
            "leave none that the model could choose",
            "Allow an end token where nothing else may follow",
        )


def _check_largest(top: float) -> None:
    """`top`: the largest of the logits, which to NumPy is NaN where any of them is."""
    if math.isfinite(top):
        return
    reason = (
        "has no possible next token: every logit is -inf"
        if top == -math.inf
        else f"has a logit that is {'NaN' if math.isnan(top) else 'infinite'}"
    )
    raise DeviceError(
        "the model's output",
        reason,
        "Run it with device numpy: if that fails as well the weights are damaged, else a kernel "
        "of this device is wrong",
    )
