"""Tuning a model on its device: the most expensive shapes first, until all is clear."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from firstlight.backends.base import Backend
from firstlight.backends.kernel import DEFINITION, Choice, Tuned, choices
from firstlight.errors import RequestError
from firstlight.host.ceilings import Ceilings
from firstlight.model.decoder import Decoder
from firstlight.ops.contract import get_op
from firstlight.tuning.agreement import Agreement
from firstlight.tuning.race import Outcome, race
from firstlight.tuning.recorder import Recorded, Recorder
from firstlight.tuning.store import Entry, Store
from firstlight.tuning.workload import (
    WORKLOADS,
    Workload,
    fitting,
    make_batch,
    make_state,
    pages_of,
)

DEFAULT_SECONDS = 120.0

# A definition is a kernel's rival only where the whole call is a matter of microseconds: there
# NumPy may be as good, and elsewhere one try could take minutes.
_DEFINITION_SECONDS = 50e-6
# Of the budget, what running one step to see its shapes may take.
_STEP_SHARE = 0.08
# No shape gets less: a verdict takes some measurements.
_LEAST_SECONDS = 0.02
_MOST_CANDIDATES = 512
# A stored verdict stands unless at least so many times the seconds that went into it are offered.
_MORE_EFFORT = 2.0

Clock = Callable[[], float]


@dataclass(frozen=True)
class Result:
    """What came of one shape.

    Attributes:
        entry: what is now known of it.
        calls: of the shape, in the recorded steps.
        share: of a step's time, weighted over the recorded steps.
        ceiling_share: seconds that the device's ceilings allow over seconds that it takes as
            chosen; None where they are not known, or only caches are read.
        fresh: whether it was measured now, and not known before.
        refused: choices that cannot run, or were fast but do not agree: why not.
    """

    entry: Entry
    calls: int
    share: float
    ceiling_share: float | None = None
    fresh: bool = True
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How to tune.

    Attributes:
        seconds: for everything.
        page_tokens, state, context_length: as of the engine that will run the model.
        state_tokens: most tokens that there is memory for.
        workloads: the steps whose shapes are tuned.
        clock: seconds.
    """

    seconds: float = DEFAULT_SECONDS
    page_tokens: int = 64
    state: str = "float32"
    context_length: int = 512
    state_tokens: int = 4096
    workloads: tuple[Workload, ...] = WORKLOADS
    clock: Clock = time.perf_counter

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise RequestError(
                f"seconds {self.seconds:g}", "is no time to tune in", "Give a number above zero"
            )


def find_shapes(decoder: Decoder, backend: Backend, settings: Settings) -> list[Recorded]:
    """The shapes of a model that have something to choose, most expensive first.

    Steps that would take too much of the time are made shorter or left out.
    """
    recorder = Recorder(backend, settings.clock)
    steps = fitting(settings.workloads, settings.context_length, settings.state_tokens)
    pages = max((pages_of(step, settings.page_tokens) for step in steps), default=0)
    state = make_state(decoder, backend, pages, settings.page_tokens, settings.state)
    per_row = 0.0
    for index, step in enumerate(steps):
        if index == 0:  # the first step also reads the weights from disk
            decoder.step(make_batch(decoder, step, settings.page_tokens), state)
        limit = _STEP_SHARE * settings.seconds
        rows = step.sequences * step.rows
        if per_row * rows > limit and step.sequences == 1:
            rows = int(limit / per_row)
            step = Workload(step.name, 1, rows, min(step.context, rows), step.weight)
        if rows < 1 or per_row * rows > limit:
            continue
        took = recorder.step(
            decoder, make_batch(decoder, step, settings.page_tokens), state, step.weight
        )
        per_row = took / rows
    found = [each for each in recorder.found.values() if _rivals(backend, each)]
    return sorted(found, key=lambda each: -each.share)


def tune(
    decoder: Decoder,
    backend: Backend,
    store: Store,
    settings: Settings,
    ceilings: Ceilings | None = None,
    *,
    restart: bool = False,
) -> Iterator[Result]:
    """Tune what the model asks of its device; each shape's result as soon as it is kept. A shape
    may come again, where time was left to look at it longer.

    What the store knows already stands, unless there is much more time now than there was then.
    While this runs, and where it is left half-way, the backend runs as without tuning;
    `Store.apply` puts the choices into force.

    Args:
        ceilings: of the device, to compare with.
        restart: forget first what is known of the model's shapes.

    Raises:
        FirstlightError: the store cannot be written.
    """
    clock = settings.clock
    end = clock() + settings.seconds
    for op, shape in backend.tuning():
        backend.apply_tuning(op, shape, None)
    shapes = find_shapes(decoder, backend, settings)
    if restart:
        store.forget((each.op, each.shape) for each in shapes)
    agreement = Agreement(backend)
    open_ = _worth_racing(shapes, store, settings.seconds)
    for recorded in shapes:
        if recorded not in open_:
            entry = store.entries[recorded.op, recorded.shape]
            yield _result(backend, recorded, entry, ceilings, fresh=False)
    # In later rounds, what the decided ones left over goes to those that are not.
    while open_ and end - clock() > _LEAST_SECONDS:
        shares = sum(each.share for each in open_)
        for recorded in open_:
            left = end - clock()
            if left < _LEAST_SECONDS:
                break
            effort = max(_LEAST_SECONDS, left * recorded.share / max(shares, 1e-12))
            shares -= recorded.share
            try:
                entry, refused = _tune_shape(backend, agreement, recorded, effort, clock)
            finally:
                # A backend may keep the last candidate's parameters with its weights.
                backend.apply_tuning(recorded.op, recorded.shape, None)
            store.add(entry)
            yield _result(backend, recorded, entry, ceilings, refused=refused)
        open_ = _worth_racing(open_, store, end - clock())


def _worth_racing(shapes: list[Recorded], store: Store, seconds: float) -> list[Recorded]:
    """The shapes that are not known, or that so much time could tell more about."""
    undecided = [
        each
        for each in shapes
        if (entry := store.entries.get((each.op, each.shape))) is None or not entry.decided
    ]
    total = sum(each.share for each in undecided) or 1.0
    return [
        each
        for each in undecided
        if (entry := store.entries.get((each.op, each.shape))) is None
        or seconds * each.share / total >= _MORE_EFFORT * entry.effort
    ]


def _rivals(backend: Backend, recorded: Recorded) -> list[Tuned]:
    """Every candidate of a shape, its default first; empty where there is nothing to choose."""
    op, arguments = recorded.op, recorded.arguments[0]
    default = backend.default_choice(op, *arguments)
    if default.kernel == DEFINITION:
        return []
    found = [default]
    (rounding,) = (k.rounding for k in backend.kernels() if (k.op, k.name) == (op, default.kernel))
    for kernel in backend.kernels():
        # One that rounds its activations by another rule cannot give the default's bits.
        if kernel.op == op and kernel.rounding is rounding:
            found += [choice for choice in choices(kernel) if choice != default]
    if recorded.seconds / max(1, recorded.calls) < _DEFINITION_SECONDS:
        found.append(Choice(DEFINITION))
    ready = [tuned for choice in found if (tuned := backend.ready(op, choice)) is not None]
    rivals = [
        tuned
        for tuned in ready
        if all(tuned.takes(*each) for each in recorded.arguments) or tuned.choice == default
    ]
    return rivals[:_MOST_CANDIDATES] if len(rivals) > 1 else []


def _tune_shape(
    backend: Backend, agreement: Agreement, recorded: Recorded, effort: float, clock: Clock
) -> tuple[Entry, dict[str, str]]:
    op = recorded.op
    rivals, refused = _rivals(backend, recorded), dict[str, str]()
    samples = (recorded.arguments[0], recorded.arguments[-1])

    def valid(index: int) -> bool:
        why = agreement.objection(op, rivals[0], rivals[index], samples)
        if why:
            refused[str(rivals[index].choice)] = why
        return not why

    timer = _Timer(backend, recorded, rivals, refused, clock)
    outcome = race(len(rivals), timer, effort, valid=valid, clock=clock)
    return _entry(
        recorded, rivals[0], rivals[outcome.winner], outcome, len(rivals), effort
    ), refused


class _Timer:
    """Times single calls of candidates, on the arguments of one layer after another. Once through
    them all, the caches are emptied, as by the rest of a step."""

    def __init__(
        self,
        backend: Backend,
        recorded: Recorded,
        candidates: list[Tuned],
        refused: dict[str, str],
        clock: Clock,
    ) -> None:
        self._backend, self._clock = backend, clock
        self._recorded, self._candidates, self._refused = recorded, candidates, refused
        self._slot = 0
        cost = get_op(recorded.op).cost
        moved = sum(cost(*map(backend.sized, each)).bytes_moved for each in recorded.arguments)
        self._evicts = recorded.persistent and moved < 2 * backend.cache_bytes()

    def __call__(self, index: int) -> float:
        backend, clock, arguments = self._backend, self._clock, self._recorded.arguments
        if self._slot == 0 and self._evicts:
            backend.evict_caches()
        given = arguments[self._slot]
        self._slot = (self._slot + 1) % len(arguments)
        run = self._candidates[index].run
        started = clock()
        try:
            run(*given)
            backend.synchronize()
        except Exception as raised:
            if index == 0:
                raise
            # Whatever a kernel or its driver raises is a finding about the kernel.
            why = f"raised {type(raised).__name__}: {raised}"
            self._refused[str(self._candidates[index].choice)] = why
            return math.inf
        return clock() - started


def _entry(
    recorded: Recorded,
    default: Tuned,
    winner: Tuned,
    outcome: Outcome,
    candidates: int,
    effort: float,
) -> Entry:
    return Entry(
        op=recorded.op,
        shape=recorded.shape,
        default=default.choice,
        choice=winner.choice,
        ratio=outcome.ratio,
        seconds=outcome.seconds[outcome.winner],
        candidates=candidates,
        decided=outcome.decided,
        effort=effort,
    )


def _result(
    backend: Backend,
    recorded: Recorded,
    entry: Entry,
    ceilings: Ceilings | None,
    fresh: bool = True,
    refused: dict[str, str] | None = None,
) -> Result:
    share = None
    # Only of what comes from memory: the rest lies in caches, which have no ceiling measured.
    if ceilings is not None and recorded.persistent and entry.seconds > 0:
        cost = get_op(recorded.op).cost(*map(backend.sized, recorded.arguments[0]))
        peak = max(ceilings.matrix_operations_per_second.values(), default=float("inf"))
        least = max(cost.bytes_moved / ceilings.bandwidth_bytes_per_second, cost.operations / peak)
        share = least / entry.seconds
    return Result(entry, recorded.calls, recorded.share, share, fresh, refused or {})
