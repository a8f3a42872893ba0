"""The choice of the next tokens from logits, and how likely tokens are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.drawing import Doubles, Indices, draw, largest

Integers = NDArray[np.int32]

# What stands in a token's place where none was chosen.
NOT_REACHED = -1  # the row before did not choose what this one was computed from
NOT_A_NUMBER = -2  # a logit is NaN
INFINITE = -3  # a logit is +inf
IMPOSSIBLE = -4  # every logit is -inf
NONE_ALLOWED = -5  # every logit of an allowed token is -inf


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What happens to the logits of a few tokens before one is chosen, in this order.

    Attributes:
        tokens: int64 [n], each once.
        bias: float64 [n], added.
        factors: float64 [n], above 0; positive logits are divided by them, others multiplied.
        less: float64 [n], subtracted.
    """

    tokens: Indices
    bias: Doubles
    factors: Doubles
    less: Doubles

    def apply(self, logits: Floats) -> Doubles:
        """The adjusted logits, float64 [vocabulary]."""
        adjusted = logits.astype(np.float64)
        values = adjusted[self.tokens] + self.bias
        values = np.where(values > 0, values / self.factors, values * self.factors)
        adjusted[self.tokens] = values - self.less
        return adjusted


@dataclass(frozen=True, eq=False)
class TokenChoice:
    """How the token of one row is chosen. Everything is on the host.

    Attributes:
        temperature: logits are divided by it; 0 takes the largest.
        top_k: only so many largest; 0 means all.
        top_p: only the fewest likeliest tokens whose probabilities reach it.
        min_p: only tokens at least so many times as probable as the likeliest.
        number: in [0, 1), decides the draw.
        adjustment: of logits, before all else; None: none.
        allowed: bool [vocabulary], which tokens may be chosen; None: all.
        follows: the token that the row before must have chosen, since this row was computed from
            it; None: the row stands for itself.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    number: float = 0.0
    adjustment: Adjustment | None = None
    allowed: NDArray[np.bool_] | None = None
    follows: int | None = None


def _choose_tokens_cost(logits: Floats, choices: tuple[TokenChoice, ...]) -> Cost:
    return Cost(4 * logits.size, logits.size)


@define(
    Tolerance(
        relative=0.0,
        absolute=0.0,
        reason="token ids; a random number so near the border of two tokens that rounding of a "
        "float32 weight decides may draw the other, which cases avoid",
    ),
    _choose_tokens_cost,
)
def choose_tokens(logits: Floats, choices: tuple[TokenChoice, ...]) -> Integers:
    """A token for each row: adjustment, temperature, top-k, top-p (Holtzman et al. 2019,
    arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082), then one draw.

    The draw inverts the cumulative distribution: of the tokens left, after top-k or top-p by
    falling logit, else by id, the first one whose probability and those before it sum to more than
    the number. So it is a function of a row's logits and choice alone. Of equal logits that of the
    lower id counts as the larger one.

    Args:
        logits: float32 [n, vocabulary]; -inf rules a token out.
        choices: n of them.

    Returns:
        int32 [n]. Where no token can be chosen, one of the negative numbers above.
    """
    tokens = np.empty(len(logits), np.int32)
    likeliest = logits.argmax(axis=1).tolist() if len(logits) else []
    before: int | None = None
    for row, (choice, top) in enumerate(zip(choices, likeliest, strict=True)):
        reached = choice.follows is None or choice.follows == before
        before = _choose(logits[row], choice, top) if reached else NOT_REACHED
        tokens[row] = before
    return tokens


def _choose(logits: Floats, choice: TokenChoice, likeliest: int) -> int:
    top = float(logits[likeliest])
    if not math.isfinite(top):  # to NumPy the largest is NaN where any is
        if math.isnan(top):
            return NOT_A_NUMBER
        return INFINITE if top > 0 else IMPOSSIBLE
    if choice.allowed is not None:
        logits = np.where(choice.allowed, logits, np.float32(-np.inf))
        likeliest = int(np.argmax(logits))
        if logits[likeliest] == -np.inf:
            return NONE_ALLOWED
    adjusted: Floats | Doubles = logits
    if choice.adjustment is not None:
        adjusted = choice.adjustment.apply(logits)
        likeliest = int(np.argmax(adjusted)) if choice.temperature == 0.0 else 0
    if choice.temperature == 0.0:
        return likeliest
    return draw(adjusted, choice, choice.number)


def _likeliest_tokens_cost(logits: Floats, count: int) -> Cost:
    return Cost(4 * logits.size, logits.size)


@define(
    Tolerance(relative=0.0, absolute=0.0, reason="token ids, in an order without rounding"),
    _likeliest_tokens_cost,
)
def likeliest_tokens(logits: Floats, count: int) -> Integers:
    """The tokens of each row's largest logits.

    Args:
        logits: float32 [n, vocabulary].
        count: at most the vocabulary's size.

    Returns:
        int32 [n, count], by falling logit, equal ones by id.
    """
    found = np.empty((len(logits), count), np.int32)
    for row, values in enumerate(logits):
        found[row] = largest(values, count)
    return found


def _token_log_probabilities_cost(logits: Floats, tokens: Integers) -> Cost:
    return Cost(4 * logits.size + 8 * tokens.size, 2 * logits.size)


@define(
    Tolerance(
        relative=1e-6,
        absolute=2e-6,
        reason="a sum of float32 powers, whose logarithm is taken",
    ),
    _token_log_probabilities_cost,
)
def token_log_probabilities(logits: Floats, tokens: Any) -> Floats:
    """log softmax of each row's logits at some tokens, as the model has it: before any adjustment.

    Args:
        logits: float32 [n, vocabulary].
        tokens: int32 [n, m]; of negative ones the result means nothing.

    Returns:
        float32 [n, m].
    """
    top = logits.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)
        values = np.take_along_axis(logits, np.maximum(tokens, 0).astype(np.int64), axis=1)
        found: Floats = (values.astype(np.float64) - top - np.log(total)).astype(np.float32)
    return found
