"""Finding the shapes of a model by running it: what it calls, with which arguments, how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from firstlight.backends.base import Backend
from firstlight.formats.base import Floats, Weight
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.ops import Ops, PackedWeight, Tensor
from firstlight.ops.contract import get_op
from firstlight.ops.shape import Shape

# Activations are kept for the timing. Of a long prompt's, two layers' are enough: their products
# are bound by arithmetic, and where the weights come from hardly matters.
_KEPT_BYTES = 48 << 20
_LEAST_KEPT, _MOST_KEPT = 2, 64


@dataclass(eq=False)
class Recorded:
    """The calls of one shape.

    Attributes:
        op, shape: what they have in common.
        arguments: of some of the calls, from different layers.
        calls: how many there were, over all steps.
        seconds: that they took.
        share: of the time of all steps, weighted by what each step counts.
        persistent: whether weights or state are read, which in a real step come from memory.
    """

    op: str
    shape: Shape
    arguments: list[tuple[Any, ...]] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0
    share: float = 0.0
    persistent: bool = False
    kept_bytes: int = 0


class Recorder(Ops):
    """A backend that notes what is asked of it. Composites run through their parts, so that these
    are seen even where the backend has a kernel for the whole."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend, self._clock = backend, clock
        self._streams: set[int] = set()
        self._step: dict[tuple[str, Shape], float] = {}
        self.found: dict[tuple[str, Shape], Recorded] = {}

    def step(self, decoder: Decoder, batch: Batch, state: State, weight: float = 1.0) -> float:
        """Run one step of a decoder, which is not changed; seconds that its parts took.

        Args:
            weight: what the step counts beside others.
        """
        recording = copy(decoder)
        recording.ops = self
        self._streams = {id(stream) for layer in state for stream in layer}
        self._step = {}
        recording.step(batch, state)
        total = sum(seconds for (op, _), seconds in self._step.items() if not get_op(op).composite)
        for key, seconds in self._step.items():
            self.found[key].seconds += seconds
            self.found[key].share += weight * seconds / max(total, 1e-12)
        return total

    def call(self, name: str, *arguments: Any) -> Any:
        op, backend = get_op(name), self._backend
        started = self._clock()
        if op.composite:
            result = op.definition(self, *arguments)
        else:
            result = backend.call(name, *arguments)
            backend.synchronize()
        if op.shape is not None:
            self._note(name, op.shape(*arguments), arguments, self._clock() - started)
        return result

    def _note(self, op: str, shape: Shape, arguments: tuple[Any, ...], seconds: float) -> None:
        key = op, shape
        self._step[key] = self._step.get(key, 0.0) + seconds
        entry = self.found.setdefault(key, Recorded(op, shape))
        entry.calls += 1
        size = 0
        for argument in arguments:
            if self._backend.is_packed(argument) or id(argument) in self._streams:
                entry.persistent = True
            elif self._backend.is_tensor(argument):
                size += getattr(argument, "nbytes", 0)
        kept = len(entry.arguments)
        if kept < _LEAST_KEPT or (kept < _MOST_KEPT and entry.kept_bytes + size <= _KEPT_BYTES):
            entry.arguments.append(arguments)
            entry.kept_bytes += size

    def upload(self, array: NDArray[Any]) -> Tensor:
        return self._backend.upload(array)

    def download(self, tensor: Tensor) -> Floats:
        return self._backend.download(tensor)

    def pack(self, weight: Weight) -> PackedWeight:
        return self._backend.pack(weight)

    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> Tensor:
        return self._backend.new_stream(pages, page_tokens, entry, dtype)

    def usage(self) -> Mapping[tuple[str, str], tuple[int, float]]:
        return self._backend.usage()
