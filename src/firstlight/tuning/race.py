"""Which of several candidates is fastest, found on a noisy machine within a budget of seconds.

Two parts. Successive halving (Karnin, Koren and Somekh 2013, "Almost optimal exploration in
multi-armed bandits", section 3) reduces the challengers to one: all are timed in turn, the faster
half goes on and is timed longer. Being the best of many by luck is easy there, so that the one left
meets the default in a duel of fresh pairs. It wins only where a confidence bound on the median of
the pairs' ratios says that it is faster by more than `LEAST_GAIN`; else the default stays. Whether
it may serve at all is asked just before the duel, of the one candidate that it then matters for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

LEAST_GAIN = 0.02
"""A change worth less than this is not made: it would be gone at the next compiler's whim."""

# One-sided probability of a wrong verdict of one duel.
_DOUBT = 0.005
_LEAST_PAIRS, _MOST_PAIRS = 9, 201
# A challenger slower than this beside the default is not timed a second time.
_HOPELESS = 2.0
# Of the budget, what the halving may take; the rest is the duel's.
_HALVING_SHARE = 0.6
_MOST_REPETITIONS = 64

# A duel with less time than for so many measurements comes to no verdict, and is not begun.
_LEAST_MEASUREMENTS = 24
# While challengers are first looked at, the default is timed again after so many of them.
_BETWEEN_DEFAULTS = 4

Sample = Callable[[int], float]
"""Runs candidate i once -> seconds that it took; infinite where it cannot run."""

Valid = Callable[[int], bool]
"""Whether candidate i may win."""


@dataclass(frozen=True)
class Outcome:
    """What came of a race.

    Attributes:
        winner: index of the candidate to use; 0 is the default.
        ratio: seconds of the winner over seconds of the default: the median of the duel's pairs; 1
            where the default stays.
        seconds: index -> median seconds of the candidates that were timed to the end.
        decided: whether a longer race would hardly say otherwise: every candidate was timed, and
            the duel came to a verdict.
        pairs: measurements of the duel.
    """

    winner: int
    ratio: float
    seconds: dict[int, float] = field(default_factory=dict)
    decided: bool = True
    pairs: int = 0


def race(
    count: int,
    sample: Sample,
    budget: float,
    *,
    valid: Valid = lambda _: True,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Outcome:
    """The fastest of `count` candidates, of which 0 is the default.

    Args:
        count: how many candidates; they should come in the order in which they are worth trying,
            since a short budget reaches only the first.
        sample: times one.
        budget: seconds that it may take, with a little more for measurements under way; it ends
            early once the verdict is clear. Where it is too short for any verdict, the default
            stays, undecided.
        valid: asked of few candidates, the fastest.
        clock: seconds, for the budget only.
        seed: of the order of measurements.
    """
    started = clock()
    generator = np.random.default_rng(seed)
    times: dict[int, list[float]] = {0: [sample(0), sample(0)]}
    if count == 1:
        return Outcome(0, 1.0, {0: min(times[0])})
    if budget < _LEAST_MEASUREMENTS * min(times[0]):
        return Outcome(0, 1.0, {0: min(times[0])}, decided=False)
    deadline = started + _HALVING_SHARE * budget
    alive = list(range(1, count))
    complete = _first_look(alive, times, sample, clock, deadline)
    while len(alive) > 1 and clock() < deadline:
        repetitions = _repetitions(alive, times, deadline - clock())
        for _ in range(repetitions):
            order = [0, *alive]
            generator.shuffle(order)
            for index in order:
                times[index].append(sample(index))
                if clock() >= deadline:
                    break
        alive.sort(key=lambda index: _typical(times[index]))
        del alive[(len(alive) + 1) // 2 :]
    complete = complete and len(alive) < 2
    finalist = _finalist(times, valid)
    if finalist is None:
        return Outcome(0, 1.0, {0: _typical(times[0])}, complete)
    ratios, verdict = _duel(finalist, times, sample, clock, started + budget)
    seconds = {index: _typical(measured) for index, measured in times.items()}
    wins = verdict is True
    return Outcome(
        finalist if wins else 0,
        statistics.median(ratios) if wins else 1.0,
        seconds,
        complete and verdict is not None,
        len(ratios),
    )


def _first_look(
    alive: list[int],
    times: dict[int, list[float]],
    sample: Sample,
    clock: Callable[[], float],
    deadline: float,
) -> bool:
    """Time every challenger once beside the default and drop the hopeless. Whether the time
    sufficed for all; half of it must be left for what comes after."""
    end = clock() + (deadline - clock()) / 2
    complete = True
    for place, index in enumerate(list(alive)):
        if place and clock() >= end:
            alive.remove(index)
            complete = False
            continue
        if place % _BETWEEN_DEFAULTS == 0:
            times[0].append(sample(0))
        times[index] = [sample(index)]
        if times[index][0] > _HOPELESS * min(times[0]):
            # Once more: somebody else may have had the processor.
            times[index].append(sample(index))
            if min(times[index]) > _HOPELESS * min(times[0]):
                alive.remove(index)
    return complete


def _finalist(times: dict[int, list[float]], valid: Valid) -> int | None:
    """The fastest valid challenger that did not look slower than the default; None without one."""
    for index in sorted(times, key=lambda index: _typical(times[index])):
        if index == 0:
            return None
        if valid(index):
            return index
    return None


def _repetitions(alive: Sequence[int], times: dict[int, list[float]], left: float) -> int:
    """Measurements of each in this round, so that every round to come takes about as long."""
    rounds = max(1, math.ceil(math.log2(len(alive))))
    once = sum(_typical(times[index]) for index in (0, *alive))
    return max(1, min(_MOST_REPETITIONS, int(left / rounds / max(once, 1e-9))))


def _typical(measured: Sequence[float]) -> float:
    """The lower quartile: interruptions only ever add time, so that the upper half says little;
    and the minimum alone would be one lucky measurement."""
    ordered = sorted(measured)
    return ordered[(len(ordered) - 1) // 4]


def _duel(
    finalist: int,
    times: dict[int, list[float]],
    sample: Sample,
    clock: Callable[[], float],
    deadline: float,
) -> tuple[list[float], bool | None]:
    """(ratios of the pairs, whether the finalist is faster by more than LEAST_GAIN; None: neither
    could be shown in time)."""
    ratios: list[float] = []
    # Judged at few moments only: a test that is repeated after every pair would be passed by chance
    # sooner or later.
    next_look = _LEAST_PAIRS
    while len(ratios) < _MOST_PAIRS:
        # Who goes first alternates, for what the first leaves behind in the caches.
        pair = (0, finalist) if len(ratios) % 2 else (finalist, 0)
        seconds = {index: sample(index) for index in pair}
        for index in pair:
            times[index].append(seconds[index])
        ratios.append(seconds[finalist] / max(seconds[0], 1e-12))
        late = clock() >= deadline
        if len(ratios) < (_LEAST_PAIRS if late else next_look):
            continue
        next_look = 2 * len(ratios) + 1
        least, most = median_bounds(ratios, _DOUBT)
        if most < 1 - LEAST_GAIN:
            return ratios, True
        if least > 1 - LEAST_GAIN:
            return ratios, False
        if late:
            return ratios, None
    return ratios, False


def median_bounds(values: Sequence[float], doubt: float) -> tuple[float, float]:
    """Bounds of the median that values were drawn around, each wrong with probability `doubt`.

    Without assumptions on the distribution: order statistics, as in David and Nagaraja 2003, "Order
    Statistics", section 7.1. Infinite where there are too few values for so little doubt.
    """
    ordered, count = sorted(values), len(values)
    below, place = 0.0, 0
    while below + math.comb(count, place) / 2**count <= doubt:
        below += math.comb(count, place) / 2**count
        place += 1
    if place == 0:
        return -math.inf, math.inf
    return ordered[place - 1], ordered[count - place]
