"""The next token, as a pure function of logits, parameters, history, seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firstlight.engine.parameters import SamplingParameters
from firstlight.errors import DeviceError, RequestError
from firstlight.formats.base import Floats
from firstlight.ops.choose_tokens import (
    IMPOSSIBLE,
    INFINITE,
    NONE_ALLOWED,
    NOT_A_NUMBER,
    Adjustment,
    TokenChoice,
    choose_tokens,
)
from firstlight.ops.drawing import Doubles, distribution, largest

__all__ = [
    "adjust",
    "adjustment",
    "checked_token",
    "choice_of",
    "distribution",
    "largest",
    "log_probabilities",
    "sample",
    "uniform",
]

Allowed = NDArray[np.bool_]


def sample(
    logits: Floats,
    parameters: SamplingParameters,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    position: int,
    allowed: Allowed | None = None,
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

    Returns:
        A token id. Among equally likely tokens the lowest id wins where temperature is 0.

    Raises:
        DeviceError: the logits are no distribution: one is NaN or +inf, or all are -inf.
        RequestError: logit_bias names a token outside the vocabulary, or no token is allowed.
    """
    check_logit_bias(parameters, len(logits))
    choice = choice_of(parameters, prompt_ids, output_ids, position, allowed)
    return checked_token(int(choose_tokens(logits[None], (choice,))[0]))


def choice_of(
    parameters: SamplingParameters,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    position: int,
    allowed: Allowed | None = None,
    follows: int | None = None,
) -> TokenChoice:
    """The same as the op `choose_tokens` takes it, which may run wherever the logits are.

    Args:
        follows: the token that must have been chosen for the row before.
    """
    draws = parameters.temperature > 0.0
    return TokenChoice(
        parameters.temperature,
        parameters.top_k,
        parameters.top_p,
        parameters.min_p,
        uniform(parameters.seed, position) if draws else 0.0,
        adjustment(parameters, prompt_ids, output_ids),
        allowed,
        follows,
    )


def checked_token(token: int) -> int:
    """A token as `choose_tokens` gave it; DeviceError or RequestError, as `sample`, where it is
    none."""
    if token >= 0:
        return token
    if token == NONE_ALLOWED:
        raise RequestError(
            "the tokens allowed",
            "leave none that the model could choose",
            "Allow an end token where nothing else may follow",
        )
    raise DeviceError(
        "the model's output",
        {
            IMPOSSIBLE: "has no possible next token: every logit is -inf",
            NOT_A_NUMBER: "has a logit that is NaN",
            INFINITE: "has a logit that is infinite",
        }[token],
        "Run it with device numpy: if that fails as well the weights are damaged, else a kernel "
        "of this device is wrong",
    )


def check_logit_bias(parameters: SamplingParameters, vocabulary: int) -> None:
    """RequestError where logit_bias names a token outside the vocabulary."""
    for token in parameters.logit_bias:
        if token >= vocabulary:
            raise RequestError(
                f"logit_bias[{token}]",
                f"the vocabulary has ids 0 to {vocabulary - 1}",
                "Use ids of this model's tokenizer",
            )


def adjustment(
    parameters: SamplingParameters, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> Adjustment | None:
    """What bias and penalties do to logits; None where there are none."""
    repetition, bias = parameters.repetition_penalty, parameters.logit_bias
    counted = bool(parameters.presence_penalty or parameters.frequency_penalty)
    if not (bias or counted or repetition != 1.0):
        return None
    output = np.asarray(output_ids, np.int64)
    biased = np.fromiter(bias, np.int64, len(bias))
    seen = output
    if repetition != 1.0:
        seen = np.concatenate([np.asarray(prompt_ids, np.int64), output])
    tokens = np.unique(np.concatenate([biased, seen]))
    found = Adjustment(tokens, np.zeros(len(tokens)), np.ones(len(tokens)), np.zeros(len(tokens)))
    found.bias[np.searchsorted(tokens, biased)] = np.fromiter(bias.values(), np.float64, len(bias))
    if repetition != 1.0:
        found.factors[np.searchsorted(tokens, seen)] = repetition
    if counted:
        each, counts = np.unique(output, return_counts=True)
        amounts = parameters.presence_penalty + parameters.frequency_penalty * counts
        found.less[np.searchsorted(tokens, each)] = amounts
    return found


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
    found = adjustment(parameters, prompt_ids, output_ids)
    return logits.astype(np.float64) if found is None else found.apply(logits)


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
