"""The next token, as a pure function of logits, parameters, history, seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firstlight.engine.parameters import SamplingParameters
from firstlight.errors import RequestError
from firstlight.formats.base import Floats

Doubles = NDArray[np.float64]


def sample(
    logits: Floats,
    parameters: SamplingParameters,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    position: int,
) -> int:
    """Choose a token.

    The order is: bias, penalties, temperature, top-k, top-p, min-p, then one draw. The draw takes
    its random number from a counter-based generator (Philox4x64-10, Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3") with the seed as key and the position as
    counter. So a sequence gives the same tokens alone or in a batch, and after it was moved.

    Args:
        logits: float32 [vocabulary].
        prompt_ids, output_ids: the tokens so far.
        position: of the token to be chosen in its sequence.

    Returns:
        A token id. Among equally likely tokens the lowest id wins where temperature is 0.
    """
    adjusted = adjust(logits, parameters, prompt_ids, output_ids)
    if parameters.temperature == 0.0:
        return int(np.argmax(adjusted))
    tokens, probabilities = distribution(adjusted, parameters)
    draw = uniform(parameters.seed, position) * probabilities.sum()
    index = np.searchsorted(np.cumsum(probabilities), draw, side="right")
    return int(tokens[min(int(index), len(tokens) - 1)])


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
    adjusted = logits.astype(np.float64)
    for token, bias in parameters.logit_bias.items():
        if not 0 <= token < len(adjusted):
            raise RequestError(
                f"logit_bias[{token}]",
                f"the vocabulary has ids 0 to {len(adjusted) - 1}",
                "Use ids of this model's tokenizer",
            )
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
    adjusted: Doubles, parameters: SamplingParameters
) -> tuple[NDArray[np.int64], Doubles]:
    """The tokens left after temperature and truncation, and their probabilities.

    Returns:
        Token ids int64 [m], and float64 [m] that sum to one. Where nothing is truncated the ids
        are in order, else by falling probability, equal ones by id.
    """
    scaled = adjusted / parameters.temperature
    tokens = np.arange(len(scaled))
    truncates = parameters.top_k or parameters.top_p < 1.0 or parameters.min_p > 0.0
    if truncates:
        if 0 < parameters.top_k < len(scaled):
            # Ties with the k-th are all kept until the sort decides by id.
            least = np.partition(scaled, -parameters.top_k)[-parameters.top_k]
            tokens = np.flatnonzero(scaled >= least)
        tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
        if parameters.top_k:
            tokens = tokens[: parameters.top_k]
    weights = np.exp(scaled[tokens] - scaled[tokens].max())
    probabilities = weights / weights.sum()
    if parameters.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        kept = max(1, int(np.count_nonzero(before < parameters.top_p)))
        tokens, probabilities = tokens[:kept], probabilities[:kept]
    if parameters.min_p > 0.0:
        kept = int(np.count_nonzero(probabilities >= parameters.min_p * probabilities[0]))
        tokens, probabilities = tokens[:kept], probabilities[:kept]
    return tokens, probabilities / probabilities.sum()


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a seed and a position."""
    generator = np.random.Philox(key=seed, counter=position)
    return float(np.random.Generator(generator).random())


def log_probabilities(logits: Floats) -> Floats:
    """log softmax of logits [..., vocabulary], float32, computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide.astype(np.float32)
