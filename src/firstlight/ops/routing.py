"""Which experts a token goes to, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.ops.contract import Cost, Tolerance, define

Integers = NDArray[np.int32]
Score = Literal["softmax", "sigmoid", "sqrt_softplus"]
GroupScore = Literal["largest", "two_largest"]

# Added to a sum that weights are divided by, so that one of zero leaves them zero.
_LEAST_SUM = 1e-20


@dataclass(frozen=True)
class Routing:
    """How weights of experts follow from a router's results, in numbers.

    Attributes:
        top_k: experts that each token goes to.
        score: of each expert: "softmax" over all experts (Fedus et al. 2021, arXiv:2101.03961,
            equation 1), "sigmoid" (DeepSeek-V3, arXiv:2412.19437, equation 15) or "sqrt_softplus",
            the root of ln(1 + e^x) (DeepSeek-V4's report, section 2.1).
        groups, groups_kept: the experts stand in so many groups of neighbours, and only those of
            the best groups are chosen from (DeepSeek-V2, arXiv:2405.04434, section 2.2.2).
        group_score: a group counts by its "largest" score (DeepSeek-V2) or by the sum of its
            "two_largest" (DeepSeek-V3), correction included.
        renormalised: the chosen scores are divided by their sum (Mixtral, arXiv:2401.04088,
            section 2.1, where the softmax is over the chosen alone: the same number).
        scale: factor of the weights at the end.
    """

    top_k: int
    score: Score = "softmax"
    groups: int = 1
    groups_kept: int = 1
    group_score: GroupScore = "largest"
    renormalised: bool = False
    scale: float = 1.0


def _scores(logits: NDArray[np.float64], score: Score) -> NDArray[np.float64]:
    if score == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return softmax
    if score == "sigmoid":
        # 1 / (1 + exp(-x)) overflows for very negative x; the tanh form is the same function.
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    if score == "sqrt_softplus":
        return np.sqrt(np.logaddexp(0.0, logits))
    raise ValueError(f"unknown score {score!r}")


def _within_best_groups(preference: NDArray[np.float64], routing: Routing) -> NDArray[np.float64]:
    """The preferences, those of groups that are not kept at minus infinity."""
    rows, experts = preference.shape
    grouped = preference.reshape(rows, routing.groups, experts // routing.groups)
    counted = 1 if routing.group_score == "largest" else 2
    group_scores = np.sort(grouped, axis=2)[:, :, -counted:].sum(axis=2)
    kept = _largest(group_scores, routing.groups_kept)
    masked = np.full_like(grouped, -np.inf)
    np.put_along_axis(masked, kept[:, :, None], np.take_along_axis(grouped, kept[:, :, None], 1), 1)
    return masked.reshape(rows, experts)


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Indices of each row's largest values, the lower index first where values are equal."""
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def _route_cost(logits: Any, routing: Routing, correction: Any = None, chosen: Any = None) -> Cost:
    return Cost(8 * logits.shape[0] * logits.shape[1], 8 * logits.shape[0] * logits.shape[1])


@define(
    Tolerance(
        relative=2e-6,
        absolute=1e-7,
        reason="a few float32 roundings and transcendental functions; a choice between scores that "
        "differ by less may fall the other way, which cases avoid",
    ),
    _route_cost,
)
def route(
    logits: Floats,
    routing: Routing,
    correction: Floats | None = None,
    chosen: Integers | None = None,
) -> Floats:
    """The weight of every expert for every token: zero for those that it does not go to.

    Of score s_i = score(logits)_i, the experts of the largest s_i + correction_i are chosen, within
    the groups kept; of equals the one with the lower index. An expert's weight is its s_i without
    correction (Wang et al. 2024, arXiv:2408.15664), renormalised and scaled as `routing` says.

    Args:
        logits: float32 [n, experts], the router's results.
        routing: what is done with them.
        correction: float32 [experts], added for the choice alone; None: nothing.
        chosen: int32 [n, top_k]: the choice, made by other means (DeepSeek-V4's table from tokens
            to experts); an expert that stands there twice has twice the weight. None: as above.

    Returns:
        float32 [n, experts], computed in float64.
    """
    scores = _scores(logits.astype(np.float64), routing.score)
    places: NDArray[Any]
    if chosen is None:
        preference = scores if correction is None else scores + correction
        if routing.groups_kept < routing.groups:
            preference = _within_best_groups(preference, routing)
        places = _largest(preference, routing.top_k)
    else:
        places = chosen
    weights = np.take_along_axis(scores, places, axis=1)
    if routing.renormalised:
        weights = weights / (weights.sum(axis=1, keepdims=True) + _LEAST_SUM)
    out = np.zeros(logits.shape, np.float64)
    np.add.at(out, (np.arange(len(out))[:, None], places), routing.scale * weights)
    return out.astype(np.float32)
