"""Steps that are recorded once and replayed for other inputs: no kernel is asked for one by one.

A step is recorded for each combination of its inputs' shapes. All inputs lie in one buffer on the
device, which one copy fills before each replay; all else that the step reads or writes, weights and
state, stays where it is. The first step of some shapes runs as ever, but with its inputs deferred
(deferred.py), so that everything a kernel does once (tuning, tables of constants) is done, and what
cannot be replayed shows itself before anything is recorded. The second is recorded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.torch.deferred import Deferred, NotReplayable
from firstlight.backends.torch.device import is_accelerator, synchronize
from firstlight.backends.torch.quirks import HOST, quirk_of
from firstlight.backends.torch.transfer import Transfer

MOST_GRAPHS = 64
"""Of one engine; the one that was used longest ago makes room."""

_ALIGNMENT = 64

_Compute = Callable[..., torch.Tensor]
_Key = tuple[tuple[tuple[int, ...], str], ...]


class RecordedGraph(Protocol):
    """What a device asks for again as a whole."""

    def capture(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Record what is asked of the device. The result has meaning after a replay only."""

    def replay(self) -> None:
        """Ask for all of it again, with what its inputs hold now."""


class AcceleratorGraph:
    """One of `torch.accelerator`'s. Graphs that share a pool of memory overwrite one another's
    results, so that all together take as much as the largest.

    Args:
        pool: holds the pool once the first of those that share it is recorded.
        mode: what other threads may do meanwhile, as `torch.accelerator.Graph` takes it.
    """

    def __init__(self, device: torch.device, pool: list[Any], mode: Any) -> None:
        self._device = device
        self._pool = pool
        shared = pool[0] if pool else None
        self._graph = torch.accelerator.Graph(pool=shared, capture_error_mode=mode)

    def capture(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        here = torch.accelerator.device_index(self._device.index)
        with here, torch.Stream(self._device), self._graph:
            result = compute()
        if not self._pool:
            self._pool.append(self._graph.pool())
        return result

    def replay(self) -> None:
        self._graph.replay()


def graphs_of(device: torch.device) -> Callable[[], RecordedGraph] | None:
    """Makes graphs of a device; None where it has none that work, which is found out by trying."""
    if quirk_of(device).on_host or not is_accelerator(device):
        return None
    # Other threads may use the device while one records, where it can tell them apart.
    for mode in ("thread_local", "default"):
        make = partial(AcceleratorGraph, device, [], mode)
        if _works(make, device):
            return make
    return None


def _works(make: Callable[[], RecordedGraph], device: torch.device) -> bool:
    try:
        for _ in range(2):
            numbers = torch.zeros(3, device=device)
            graph = make()
            result = graph.capture(lambda numbers=numbers: numbers + 1)  # type: ignore[misc]
            numbers.fill_(4.0)
            graph.replay()
            synchronize(device)
            if result.to(HOST).tolist() != [5.0] * 3:
                return False
    except Exception:
        # PyTorch's build or a plug-in may lack it, and say so in any way.
        return False
    return True


@dataclass(eq=False)
class _Recording:
    """A step with inputs of certain shapes.

    Attributes:
        buffer: uint8; all inputs on the device.
        inputs: as the step sees them.
        constants: arrays that the step uploads besides, which are the same every time.
        failed: it cannot be recorded.
    """

    buffer: torch.Tensor
    inputs: tuple[Deferred, ...]
    offsets: tuple[int, ...]
    constants: dict[tuple[str, tuple[int, ...], bytes], torch.Tensor] = field(default_factory=dict)
    graph: RecordedGraph | None = None
    result: torch.Tensor | None = None
    failed: bool = False


class Replayer:
    """A computation that is replayed where it can be: `firstlight.ops.interface.Replayer`.

    Args:
        make_graph: of the device.
        timed: runs a replay.

    Attributes:
        why_not: why nothing is replayed any more; None while something may be.
        replays: how often a recorded graph ran.
    """

    def __init__(
        self,
        transfer: Transfer,
        compute: _Compute,
        make_graph: Callable[[], RecordedGraph],
        timed: Callable[[Callable[[], None]], None] = lambda replay: replay(),
    ) -> None:
        self.why_not: str | None = None
        self.replays = 0
        self._transfer = transfer
        self._compute = compute
        self._make_graph = make_graph
        self._timed = timed
        self._recordings: OrderedDict[_Key, _Recording] = OrderedDict()

    @property
    def possible(self) -> bool:
        return self.why_not is None

    @property
    def graphs(self) -> int:
        """How many are recorded."""
        return sum(each.graph is not None for each in self._recordings.values())

    def forget(self) -> None:
        """Record anew what will be asked for: other kernels serve now."""
        self._recordings.clear()

    def __call__(self, *arrays: NDArray[Any]) -> torch.Tensor | None:
        if not self.possible:
            return None
        key = tuple((array.shape, array.dtype.str) for array in arrays)
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._recordings[key] = self._new(arrays)
            if len(self._recordings) > MOST_GRAPHS:
                self._recordings.popitem(last=False)
            self._fill(recording, arrays)
            return self._rehearse(recording)
        self._recordings.move_to_end(key)
        if recording.failed:
            return None
        self._fill(recording, arrays)
        if recording.graph is None and not self._record(recording):
            return None
        assert recording.graph is not None
        self._timed(recording.graph.replay)
        self.replays += 1
        return recording.result

    def _new(self, arrays: tuple[NDArray[Any], ...]) -> _Recording:
        offsets, size = [], 0
        for array in arrays:
            offsets.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        device = self._transfer.device
        buffer = torch.zeros(max(size, 1), dtype=torch.uint8, device=device)
        inputs = []
        for offset, array in zip(offsets, arrays, strict=True):
            piece = buffer[offset : offset + array.nbytes]
            typed = piece.view(getattr(torch, array.dtype.name)).reshape(array.shape)
            inputs.append(Deferred(typed, array.dtype))
        return _Recording(buffer, tuple(inputs), tuple(offsets))

    def _fill(self, recording: _Recording, arrays: tuple[NDArray[Any], ...]) -> None:
        data = np.zeros(len(recording.buffer), np.uint8)
        for offset, array in zip(recording.offsets, arrays, strict=True):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            data[offset : offset + len(flat)] = flat
        self._transfer.fill(recording.buffer, data)

    def _rehearse(self, recording: _Recording) -> torch.Tensor | None:
        """The step's result, asked for piece by piece."""

        def constant(array: NDArray[Any]) -> torch.Tensor:
            key = _content(array)
            if key not in recording.constants:
                recording.constants[key] = self._transfer.upload(array)
            return recording.constants[key]

        return self._attempt(recording, constant, lambda compute: compute())

    def _record(self, recording: _Recording) -> bool:
        def constant(array: NDArray[Any]) -> torch.Tensor:
            found = recording.constants.get(_content(array))
            if found is None:
                raise NotReplayable("a kernel uploads an array that is another in every step")
            return found

        graph = self._make_graph()
        result = self._attempt(recording, constant, graph.capture)
        if result is None:
            return False
        recording.graph, recording.result = graph, result
        return True

    def _attempt(
        self,
        recording: _Recording,
        constant: Callable[[NDArray[Any]], torch.Tensor],
        run: Callable[[Callable[[], torch.Tensor]], torch.Tensor],
    ) -> torch.Tensor | None:
        try:
            with self._transfer.deferring(constant):
                return run(lambda: self._compute(*recording.inputs))
        except Exception as error:
            # What cannot be recorded may say so in any way; it runs as ever instead. What was
            # written is written again by that.
            recording.failed = True
            recording.constants.clear()
            if isinstance(error, NotReplayable):
                self.why_not = str(error)
            elif not self.graphs:
                first = str(error).strip().partition("\n")[0]
                self.why_not = f"{type(error).__name__}: {first}"
            return None


def _content(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()
