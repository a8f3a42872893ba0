"""Cases of the ops that choose tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from firstlight.formats.base import Floats
from firstlight.ops.choose_tokens import Adjustment, TokenChoice
from firstlight.verify.cases.base import Arguments, Case, normal


def choose_tokens_cases() -> Iterator[Case]:
    """The largest, draws of every kind together, and logits that nothing can be chosen from."""
    for name, make, quick in (
        ("the largest", _largest, True),
        ("draws", _draws, True),
        ("draws from equal logits", _equal, True),
        ("adjusted", _adjusted, True),
        ("allowed", _allowed, True),
        ("rows that follow rows", _following, True),
        ("no numbers", _broken, True),
        ("no rows", lambda generator: (normal(generator, 0, 5), ()), False),
        ("a large vocabulary", lambda generator: _draws(generator, 40_000), False),
    ):
        yield Case("choose_tokens", name, make, quick)


def likeliest_tokens_cases() -> Iterator[Case]:
    """Few and all, with equal logits among them."""
    for name, make, quick in (
        ("few", lambda generator: (5 * normal(generator, 3, 203), 7), True),
        ("equal", lambda generator: (np.round(normal(generator, 4, 61)), 20), True),
        ("all", lambda generator: (np.round(normal(generator, 2, 33), 1), 33), False),
        ("none", lambda generator: (normal(generator, 2, 33), 0), False),
        ("no rows", lambda generator: (normal(generator, 0, 33), 3), False),
    ):
        yield Case("likeliest_tokens", name, make, quick)


def token_log_probabilities_cases() -> Iterator[Case]:
    """Ordinary logits, and very large ones."""
    for name, make, quick in (
        ("ordinary", _scored(lambda logits: 5 * logits), True),
        ("far apart", _scored(lambda logits: 2000 * logits), False),
        ("no rows", _scored(lambda logits: logits[:0]), False),
        ("impossible ones", _scored(lambda logits: np.where(logits > 1, -np.inf, logits)), False),
    ):
        yield Case("token_log_probabilities", name, make, quick)


def _largest(generator: np.random.Generator) -> Arguments:
    logits = np.round(normal(generator, 6, 157))
    logits[2, ::2] = -np.inf
    logits[3] = -3e38
    logits[4] = 0.0
    logits[5, 100:] = 3e38
    return logits, (TokenChoice(),) * 6


_CHOICES = (
    TokenChoice(1.0),
    TokenChoice(),
    TokenChoice(0.7, top_k=1),
    TokenChoice(1.3, top_k=9),
    TokenChoice(0.9, top_k=1000),
    TokenChoice(1.1, top_p=0.8),
    TokenChoice(1.0, top_p=0.999999),
    TokenChoice(1.0, top_p=1e-6),
    TokenChoice(1.2, min_p=0.05),
    TokenChoice(0.8, top_k=12, top_p=0.9, min_p=0.1),
    TokenChoice(1e-6, top_k=3),
    TokenChoice(100.0),
)


def _draws(generator: np.random.Generator, vocabulary: int = 157) -> Arguments:
    return _drawn(4 * normal(generator, 3 * len(_CHOICES), vocabulary), generator)


def _equal(generator: np.random.Generator) -> Arguments:
    logits = np.round(normal(generator, 3 * len(_CHOICES), 67))
    logits[1::2, ::3] = -np.inf
    return _drawn(logits, generator)


def _drawn(logits: Floats, generator: np.random.Generator) -> Arguments:
    return logits.astype(np.float32), tuple(
        _with(_CHOICES[row % len(_CHOICES)], number=float(generator.random()))
        for row in range(len(logits))
    )


def _adjusted(generator: np.random.Generator) -> Arguments:
    logits = 3 * normal(generator, 8, 101)
    logits[3, :50] = -np.inf

    def adjustment(count: int) -> Adjustment:
        return Adjustment(
            generator.permutation(101)[:count].astype(np.int64),
            2 * generator.standard_normal(count),
            generator.uniform(0.5, 2.0, count),
            generator.standard_normal(count),
        )

    adjustments = (*(adjustment(13 * row) for row in range(7)), None)
    return logits, tuple(
        TokenChoice(row % 3 / 2, number=float(generator.random()), adjustment=each)
        for row, each in enumerate(adjustments)
    )


def _allowed(generator: np.random.Generator) -> Arguments:
    logits = 3 * normal(generator, 6, 101)
    few = generator.random((6, 101)) < 0.1
    few[3] = False
    return logits, tuple(
        TokenChoice(row % 2, number=float(generator.random()), allowed=few[row] if row else None)
        for row in range(6)
    )


def _following(generator: np.random.Generator) -> Arguments:
    logits = 3 * normal(generator, 9, 43)
    best = [int(token) for token in logits.argmax(axis=1)]
    follows = (None, best[0], best[1], best[2] + 1, best[3], None, best[5], None, best[7] + 1)
    return logits, tuple(TokenChoice(follows=token) for token in follows)


def _broken(generator: np.random.Generator) -> Arguments:
    logits = normal(generator, 5, 37)
    logits[0, 3] = np.nan
    logits[1, 4] = np.inf
    logits[2] = -np.inf
    logits[3, 1:3] = np.nan, np.inf
    return logits, tuple(TokenChoice(row % 2, number=0.5) for row in range(5))


def _scored(change: Callable[[Floats], Floats]) -> Callable[[np.random.Generator], Arguments]:
    def make(generator: np.random.Generator) -> Arguments:
        logits = change(normal(generator, 4, 157)).astype(np.float32)
        return logits, generator.integers(0, 157, (len(logits), 3), dtype=np.int32)

    return make


def _with(choice: TokenChoice, number: float) -> TokenChoice:
    return TokenChoice(choice.temperature, choice.top_k, choice.top_p, choice.min_p, number)
