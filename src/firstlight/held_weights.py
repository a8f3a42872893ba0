"""A model larger than memory: what of its weights is held there, and how slow it will be.

All weights stay mapped from their files, whose pages the system drops and reads again as it must.
Beside them is held in memory (host/mapping.py) first what every token needs, and then those experts
that far more tokens have gone to than to others. Of the rest the system's own cache keeps what was
used last, which is as good for experts that are used alike, and leaves them more room. The use of
experts is counted while the model runs, older use for less and less, and what is held follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firstlight.host.mapping import hold, let_go
from firstlight.host.memory import available_memory
from firstlight.model.feed_forward_spec import ExpertSpec, ExpertsSpec
from firstlight.model.matrices import KeptMatrix
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.model.weights import Weights

HELD_SHARE = 0.75
"""Of the memory beside state and activations; the rest is for what passes through."""

_SPARE_SHARE = 0.1
"""Of the memory that was available at first: where less is left, some of what is held is let go."""

_FIRST_REVIEW, _LAST_REVIEW = 16, 256
"""Passes over the weights after which what is held is chosen anew, at first and in the end."""

_MOVED_SHARE = 0.125
"""Of what is held, exchanged at most in one review, so that no token waits long for it."""

_BETTER = 1.25
"""An expert is exchanged only for one that is used so much more: what moves is read from disk."""

_HOT = 4.0
"""An expert is held where it is used so many times as much as if all were used alike. With less
the system's cache did better (bench/README.md)."""

_PRIOR_TOKENS = 8.0
"""An expert's use counts as if so many tokens had gone to all experts alike before."""

_MEMORY_SPEED = 10e9
"""Bytes per second, about, where nobody measured it: the disk decides in any case."""


@dataclass(frozen=True)
class Forecast:
    """How fast a model larger than memory is expected to be.

    Attributes:
        held: bytes of weights that memory holds.
        missing: bytes that one token needs and memory does not hold, on average.
        token_seconds: of one token.
        prompt_seconds: of one chunk of a prompt, which goes to every expert.
    """

    held: int
    missing: float
    token_seconds: float
    prompt_seconds: float


def forecast(
    spec: ModelSpec, matrices: Sequence[KeptMatrix], memory: int, disk_speed: float
) -> Forecast:
    """From what each token needs, where experts are used alike.

    Args:
        memory: bytes for weights, of which HELD_SHARE is held.
        disk_speed: bytes per second.
    """
    shares = spec.expert_shares()
    sizes = {each.source: each.nbytes for each in matrices}
    if not spec.tied:  # a few rows of it
        sizes.pop(spec.embedding, None)
    room = held = int(HELD_SHARE * memory)
    missing = active = left = 0.0
    for source in sorted(sizes, key=lambda each: -shares.get(each, 1.0)):
        share, size = shares.get(source, 1.0), sizes[source]
        kept = min(room, size)
        room -= kept
        missing += share * (size - kept)
        left += size - kept
        active += share * size
    held -= room
    return Forecast(
        held,
        missing,
        missing / disk_speed + active / _MEMORY_SPEED,
        left / disk_speed + sum(sizes.values()) / _MEMORY_SPEED,
    )


@dataclass(eq=False)
class _Part:
    """What is held as one: a matrix that every token needs, or an expert.

    Attributes:
        places: (address, bytes) of its matrices.
        counts: uses of all experts of its layer; None: every token needs it.
        expert: its index among them.
        share: of tokens, if they went to all experts alike.
        read_ahead: of its layer; see `HeldWeights`.
    """

    places: tuple[tuple[int, int], ...]
    counts: NDArray[np.int64] | None = None
    expert: int = 0
    share: float = 1.0
    read_ahead: NDArray[np.int64] | None = None
    held: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(size for _, size in self.places)

    def tell(self) -> None:
        """Have its weights read before they are used, unless they are held."""
        if self.read_ahead is not None:
            self.read_ahead[self.expert] = 0
            if not self.held:
                self.read_ahead[self.expert, : len(self.places)] = self.places

    def use(self) -> float:
        """The share of tokens that need it, as far as is known."""
        if self.counts is None:
            return 1.0
        experts = len(self.counts)
        tokens = float(self.counts.sum()) / (self.share * experts)
        known = float(self.counts[self.expert])
        return (known + self.share * _PRIOR_TOKENS) / (tokens + _PRIOR_TOKENS)


class HeldWeights:
    """Chooses what is held, and follows the use of experts. Not for several threads at once."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        mapped: Iterable[TensorSource],
        counts: Sequence[NDArray[np.int64] | None],
        read_ahead: Sequence[NDArray[np.int64] | None],
        memory: int,
    ) -> None:
        """
        Args:
            mapped: the matrices that lie in files mapped by `host.mapping.map_file`.
            counts: for each layer the tokens that went to each expert, which the layer counts.
            read_ahead: for each layer int64 [experts, 3, 2], which is told where the weights of
                experts lie that are not held (see `ExpertsBlock.places`).
            memory: bytes for weights, of which HELD_SHARE is held.
        """
        self._most = int(HELD_SHARE * memory)
        self._spare = int(_SPARE_SHARE * memory)
        self._counts = [each for each in counts if each is not None]
        self._parts = _parts(spec, weights, set(mapped), counts, read_ahead)
        self._passes = 0
        self._review_after = _FIRST_REVIEW

    @property
    def most_bytes(self) -> int:
        """What is held at most."""
        return min(self._most, sum(part.size for part in self._parts))

    @property
    def held_bytes(self) -> int:
        return sum(part.size for part in self._parts if part.held)

    def begin(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Hold as much as there is room for."""
        for part in self._chosen(self._most):
            _hold(part)
            advance(part.size)

    def after_pass(self) -> None:
        """To be called after each pass over the weights."""
        self._passes += 1
        if self._passes >= self._review_after:
            self._passes = 0
            self._review_after = min(2 * self._review_after, _LAST_REVIEW)
            self.review()

    def review(self) -> None:
        """Choose anew what is held, from what was used, and from the memory that is left now."""
        held = self.held_bytes
        room = min(self._most, max(0, held + available_memory() - self._spare))
        chosen = set(self._chosen(room))
        moved = int(_MOVED_SHARE * self._most)
        for part in self._parts:
            if part.held and part not in chosen:
                if held <= room and moved < part.size:
                    continue
                moved -= part.size
                held -= part.size
                _let_go(part)
        for part in self._parts:
            if part in chosen and not part.held and held + part.size <= room:
                held += part.size
                _hold(part)
        for counts in self._counts:
            counts >>= 1

    def _chosen(self, room: int) -> list[_Part]:
        worth = {part: part.use() * (_BETTER if part.held else 1.0) for part in self._parts}
        chosen = []
        for part in sorted(self._parts, key=lambda part: -worth[part]):
            hot = part.counts is None or worth[part] >= _HOT * part.share
            if hot and part.size <= room:
                room -= part.size
                chosen.append(part)
        return chosen


def _parts(
    spec: ModelSpec,
    weights: Weights,
    mapped: set[TensorSource],
    counts: Sequence[NDArray[np.int64] | None],
    read_ahead: Sequence[NDArray[np.int64] | None],
) -> list[_Part]:
    """In the order of use; an untied embedding, of which a token reads one row, is not there."""
    parts: list[_Part] = []
    taken: set[TensorSource] = set() if spec.tied else {spec.embedding}
    shares = spec.expert_shares()
    by_expert: dict[TensorSource, tuple[ExpertSpec, int, int]] = {}
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.feed_forward, ExpertsSpec):
            for number, expert in enumerate(layer.feed_forward.experts):
                for source in _matrices(expert):
                    by_expert[source] = (expert, index, number)
    for source in spec.sources():
        if source in taken or source not in mapped:
            continue
        if source not in by_expert:
            parts.append(_Part((_place(weights, source),)))
            continue
        expert, index, number = by_expert[source]
        together = [each for each in _matrices(expert) if each in mapped]
        taken.update(together)
        places = tuple(_place(weights, each) for each in together)
        part = _Part(places, counts[index], number, shares[source], read_ahead[index])
        part.tell()
        parts.append(part)
    return parts


def _matrices(expert: ExpertSpec) -> tuple[TensorSource, ...]:
    return expert.gate.weight, expert.up.weight, expert.down.weight


def _place(weights: Weights, source: TensorSource) -> tuple[int, int]:
    data = weights[source].data
    return data.ctypes.data, data.nbytes


def _hold(part: _Part) -> None:
    for address, size in part.places:
        hold(address, size)
    part.held = True
    part.tell()


def _let_go(part: _Part) -> None:
    for address, size in part.places:
        let_go(address, size)
    part.held = False
    part.tell()
