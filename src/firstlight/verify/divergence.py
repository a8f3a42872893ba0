"""How far one model's predictions of the next token are from another's.

Kullback and Leibler, "On information and sufficiency" (1951): the divergence of a distribution Q
from a reference P is the sum of P log(P / Q), here in nats, over the whole vocabulary. It is what
a reader of P's tokens loses, in coding or betting, by believing Q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats

Doubles = NDArray[np.float64]


@dataclass
class Divergence:
    """What was measured over some tokens; pieces are added as they come.

    Attributes:
        divergences: nats, one for each token's prediction of the next.
        same_choice: for each of those, whether the likeliest next token is the same.
        losses, reference_losses: minus log probability, in nats, of the tokens that really came
            next; there is none after a text's last token.
    """

    divergences: list[float] = field(default_factory=list)
    same_choice: list[bool] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reference_losses: list[float] = field(default_factory=list)

    def add(self, expected: Floats, found: Floats, following: Sequence[int]) -> None:
        """Take in the logits of consecutive tokens.

        Args:
            expected, found: float32 [tokens, vocabulary]; of the reference, and of what is
                compared with it.
            following: the tokens that came next, of all these but perhaps the last.
        """
        for row, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
            # A row at a time: in float64, a row of a large vocabulary is megabytes.
            p, q = log_softmax(theirs), log_softmax(ours)
            self.divergences.append(_divergence(p, q))
            self.same_choice.append(bool(theirs.argmax() == ours.argmax()))
            if row < len(following):
                self.reference_losses.append(-float(p[following[row]]))
                self.losses.append(-float(q[following[row]]))

    @property
    def tokens(self) -> int:
        return len(self.divergences)

    @property
    def mean(self) -> float:
        """Nats; NaN of no tokens."""
        return _mean(self.divergences)

    @property
    def most(self) -> float:
        """The largest of a single token, nats; NaN where one is NaN, and of no tokens."""
        return float(np.max(self.divergences)) if self.divergences else math.nan

    @property
    def agreement(self) -> float:
        """Share of tokens after which the likeliest next token is the same."""
        return _mean(self.same_choice)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; NaN where no token has a next one."""
        return _perplexity(self.losses)

    @property
    def reference_perplexity(self) -> float:
        return _perplexity(self.reference_losses)


def total(parts: Iterable[Divergence]) -> Divergence:
    """All of them as one, each token counting alike."""
    whole = Divergence()
    for part in parts:
        whole.divergences += part.divergences
        whole.same_choice += part.same_choice
        whole.losses += part.losses
        whole.reference_losses += part.reference_losses
    return whole


def log_softmax(logits: NDArray[np.floating]) -> Doubles:
    """Log probabilities, float64 [vocabulary], of one row of logits.

    A logit of minus infinity, a masked token, has probability zero.
    """
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - np.float64(logits.max())
        normalised: Doubles = shifted - np.log(np.sum(np.exp(shifted)))
    return normalised


def _divergence(p: Doubles, q: Doubles) -> float:
    """Of log probabilities; NaN where either is. Rounding can bring it 1e-16 below zero."""
    possible = p != -np.inf  # what has no probability adds nothing, even where Q has none either
    divergence = float(np.sum(np.exp(p[possible]) * (p[possible] - q[possible])))
    return divergence if math.isnan(divergence) else max(0.0, divergence)


def _mean(values: list[float] | list[bool]) -> float:
    return float(np.mean(values)) if values else math.nan


def _perplexity(losses: list[float]) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(losses))) if losses else math.nan
