"""What a chip must offer: memory, transfer, and kernels for as many ops as it has.

Dispatch is the same for every backend: what was tuned for the arguments' shape runs, else the first
kernel of the op that accepts the arguments; an op without one runs as its definition: a composite
through its parts, any other on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight import __version__
from firstlight.backends.kernel import DEFINITION, Choice, Kernel, Parameter, Tuned, tuned
from firstlight.errors import DeviceError
from firstlight.formats.base import Floats, Weight
from firstlight.host.ceilings import Ceilings, cached_ceilings, measure_ceilings, read_ceilings
from firstlight.host.memory import total_memory
from firstlight.host.processor import processor, usable_cores
from firstlight.ops.collective import RankGroup
from firstlight.ops.contract import get_op
from firstlight.ops.interface import Ops, PackedWeight, Tensor
from firstlight.ops.shape import Shape

__all__ = ["DEFINITION", "Backend", "Choice", "Kernel", "Parameter"]

# Some systems report the caches of a whole machine to a guest that has a few of its cores.
_MOST_CACHE_BYTES = 128 << 20


class Backend(Ops):
    """Dispatch, and the transfers that a fallback needs. A chip overrides memory and kernels.

    As it stands, tensors are NumPy arrays in the host's memory, weights stay as stored, and
    there are no kernels.
    """

    name = "host"

    def __init__(self, kernels: tuple[Kernel, ...] = ()) -> None:
        self._kernels: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            self._kernels.setdefault(get_op(kernel.op).name, []).append(kernel)
        # op -> (its shape function, shape -> what was tuned for it); only where that differs from
        # what would run anyway, so that everything else pays for one look-up.
        self._tuned: dict[str, tuple[Callable[..., Shape], dict[Shape, Tuned]]] = {}
        self._usage: dict[tuple[str, str], tuple[int, float]] = {}
        self._evicting: NDArray[Any] | None = None

    # Memory and transfer -----------------------------------------------------------------

    def upload(self, array: NDArray[Any]) -> Tensor:
        return array

    def download(self, tensor: Tensor) -> Floats:
        return np.asarray(tensor)

    def assign(self, tensor: Tensor, array: NDArray[Any]) -> None:
        """Overwrite a tensor with a host array; how a fallback hands back what it changed."""
        if array is not tensor:
            tensor[...] = array

    def pack(self, weight: Weight) -> PackedWeight:
        return weight

    def unpack(self, packed: PackedWeight) -> Weight:
        """The stored matrix behind a packed one, for a fallback."""
        stored: Weight = packed
        return stored

    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> Tensor:
        storage = {"float32": np.float32, "bfloat16": np.uint16}[dtype]
        return np.zeros((pages, page_tokens, *entry), storage)

    def forgo_replay(self) -> None:
        """Give no `replayer`: every op of every step is asked for by itself."""

    def remarks(self) -> tuple[str, ...]:
        """What else is to be said of how steps ran, beside `usage`: a line each."""
        return ()

    def total_memory(self) -> int:
        """Bytes of memory that tensors could ever have."""
        return total_memory()

    @property
    def on_host(self) -> bool:
        """Whether tensors lie in the host's memory."""
        return True

    def join_ranks(self, rank: int, ranks: int, folder: Path, seconds: float) -> RankGroup:
        """Take part, as one of several processes with a device each, in what they compute together.

        Args:
            folder: that every rank can reach and nobody else, empty at first.
            seconds: how long a rank waits for the others.

        Raises:
            DeviceError: this backend's devices cannot.
            RanksError: not all ranks have come in time.
        """
        raise DeviceError(f"device {self.name!r}", "it computes by itself", "Name one device")

    # What the device is ------------------------------------------------------------------

    def device_name(self) -> str:
        """The chip's name, as its maker or the system calls it."""
        return processor().name

    def device_key(self) -> str:
        """All that decides how fast this device is, as a key for what was measured on it."""
        return f"{self.name}: {self.device_name()}, {usable_cores()} cores"

    def identity(self) -> str:
        """The device and the build of the kernels: all that their results depend on."""
        return self.device_key()

    def measure_ceilings(self) -> Ceilings:
        """Measure memory bandwidth and matrix peaks now; takes seconds and shows progress."""
        return measure_ceilings(self.device_name())

    def ceilings(self, refresh: bool = False) -> Ceilings:
        """What was measured on this device before, or now if it has not been."""
        return cached_ceilings(
            self.device_key(), __version__, self.measure_ceilings, refresh=refresh
        )

    def known_ceilings(self) -> Ceilings | None:
        """What was measured on this device before, or None."""
        return read_ceilings(self.device_key(), __version__)

    def fast_formats(self) -> frozenset[str]:
        """Storage formats for which `linear` has a kernel."""
        return frozenset()

    # Dispatch ----------------------------------------------------------------------------

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel of this backend, in order of preference within an op."""
        return tuple(kernel for kernels in self._kernels.values() for kernel in kernels)

    def leave_out(self, op: str, kernel: str) -> None:
        """Have a kernel serve no longer; the op's next kernel, or its definition, takes over."""
        self._kernels[op] = [each for each in self._kernels[op] if each.name != kernel]
        for (name, shape), choice in self.tuning().items():
            if (name, choice.kernel) == (op, kernel):
                self.apply_tuning(op, shape, None)

    def call(self, name: str, *arguments: Any) -> Any:
        if name in self._tuned:
            shape, table = self._tuned[name]
            chosen = table.get(shape(*arguments))
            if chosen is not None and (chosen.accepts is None or chosen.accepts(*arguments)):
                return self._timed(name, chosen.choice.kernel, chosen.run, arguments)
        for kernel in self._kernels.get(name, ()):
            if kernel.accepts is None or kernel.accepts(*arguments):
                return self._timed(name, kernel.name, kernel.run, arguments)
        op = get_op(name)
        if op.composite:
            return op.definition(self, *arguments)
        return self._timed(name, DEFINITION, self._call_definition, (op.name, *arguments))

    # Tuning ------------------------------------------------------------------------------

    def ready(self, op: str, choice: Choice) -> Tuned | None:
        """A choice as something to call; None where this backend has no such kernel or parameter,
        or its kernel may not serve."""
        if choice.kernel == DEFINITION:
            entry = get_op(op)
            run = partial(entry.definition, self) if entry.composite else self._call_definition
            arguments = () if entry.composite else (op,)
            return None if choice.parameters else Tuned(choice, None, partial(run, *arguments))
        for kernel in self._kernels.get(op, ()):
            if kernel.name == choice.kernel:
                return tuned(kernel, choice)
        return None

    def default_choice(self, op: str, *arguments: Any) -> Choice:
        """What runs for these arguments without tuning."""
        for kernel in self._kernels.get(op, ()):
            if kernel.takes(*arguments):
                return Choice(kernel.name)
        return Choice(DEFINITION)

    def apply_tuning(self, op: str, shape: Shape, choice: Choice | None) -> None:
        """Have calls of a shape run as `choice` from now on; None: as without tuning.

        A backend whose kernels are reached by other ways than `call` (a fused op that holds
        weights of its own) extends this to tell them.

        Raises:
            ValueError: there is no such kernel or parameter here, or the op is not tuned.
        """
        key = get_op(op).shape
        if choice is None:
            if op in self._tuned:
                self._tuned[op][1].pop(shape, None)
                if not self._tuned[op][1]:
                    del self._tuned[op]
            return
        chosen = self.ready(op, choice)
        if key is None or chosen is None:
            raise ValueError(f"{op}: {choice} cannot be had on {self.name}")
        self._tuned.setdefault(op, (key, {}))[1][shape] = chosen

    def tuning(self) -> dict[tuple[str, Shape], Choice]:
        """What `apply_tuning` has set: (op, shape) -> choice."""
        return {
            (op, shape): chosen.choice
            for op, (_, table) in self._tuned.items()
            for shape, chosen in table.items()
        }

    def synchronize(self) -> None:
        """Wait until everything asked of the device is done; the host's is when a call returns."""

    def cache_bytes(self) -> int:
        """Bytes that the device's caches hold, about: what is read again later than after so many
        others comes from memory."""
        return min(processor().last_level_cache_bytes or 32 << 20, _MOST_CACHE_BYTES)

    def evict_caches(self) -> None:
        """Push weights and state out of the device's caches, as the rest of a step does, so that
        a timing that follows reads them from memory."""
        if self._evicting is None:
            self._evicting = np.ones(3 * self.cache_bytes() // 16, np.int64)
        self._evicting.sum()

    def usage(self) -> Mapping[tuple[str, str], tuple[int, float]]:
        return self._usage

    def _timed(
        self, op: str, kernel: str, run: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Any:
        started = time.perf_counter()
        result = run(*arguments)
        calls, seconds = self._usage.get((op, kernel), (0, 0.0))
        self._usage[op, kernel] = (calls + 1, seconds + time.perf_counter() - started)
        return result

    def _call_definition(self, name: str, *arguments: Any) -> Any:
        op = get_op(name)
        host = [self._to_host(argument) for argument in arguments]
        result = op.definition(*host)
        for place in op.writes:
            self.assign(arguments[place], host[place])
        return None if result is None else self.upload(result)

    def _to_host(self, argument: Any) -> Any:
        if isinstance(argument, Weight):
            return argument
        if self.is_packed(argument):
            return self.unpack(argument)
        return self.download(argument) if self.is_tensor(argument) else argument

    def is_tensor(self, argument: Any) -> bool:
        """Whether an op's argument is one of this backend's tensors."""
        return isinstance(argument, np.ndarray)

    def sized(self, argument: Any) -> Any:
        """An op's argument as far as the op's cost asks: a tensor's shape, size and dtype."""
        return argument

    def is_packed(self, argument: Any) -> bool:
        """Whether an op's argument is one of this backend's packed weights."""
        return isinstance(argument, Weight)
