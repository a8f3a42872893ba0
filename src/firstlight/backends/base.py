"""What a chip must offer: memory, transfer, and kernels for as many ops as it has.

Dispatch is the same for every backend: the first kernel of an op that accepts the arguments runs;
an op without one runs as its definition: a composite through its parts, any other on the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight import __version__
from firstlight.formats.base import Floats, Weight
from firstlight.host.ceilings import Ceilings, cached_ceilings, measure_ceilings, read_ceilings
from firstlight.host.processor import processor, usable_cores
from firstlight.ops.contract import get_op
from firstlight.ops.interface import Ops, PackedWeight, Tensor
from firstlight.ops.rounding import RoundingOf, no_rounding

DEFINITION = "definition"


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op on one backend.

    Attributes:
        op: the op's name in the contract.
        name: unique among the op's kernels on this backend.
        run: takes the op's arguments as the backend's tensors.
        accepts: whether this kernel can serve these arguments; None: always.
        rounding: how its products round their activations; it must agree with the definition on
            activations so rounded.
    """

    op: str
    name: str
    run: Callable[..., Any]
    accepts: Callable[..., bool] | None = None
    rounding: RoundingOf = no_rounding


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
        self._usage: dict[tuple[str, str], tuple[int, float]] = {}

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

    def call(self, name: str, *arguments: Any) -> Any:
        for kernel in self._kernels.get(name, ()):
            if kernel.accepts is None or kernel.accepts(*arguments):
                return self._timed(name, kernel.name, kernel.run, arguments)
        op = get_op(name)
        if op.composite:
            return op.definition(self, *arguments)
        return self._timed(name, DEFINITION, self._call_definition, (op.name, *arguments))

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

    def is_packed(self, argument: Any) -> bool:
        """Whether an op's argument is one of this backend's packed weights."""
        return isinstance(argument, Weight)
