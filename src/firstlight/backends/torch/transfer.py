"""Arrays of the host to a device and back.

What is large goes through two pieces of pinned memory in turn: while one is on its way to the
device, the other is filled from the memory-mapped file. So the host never holds a second copy.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.torch.deferred import Deferred, NotReplayable
from firstlight.backends.torch.device import synchronize
from firstlight.backends.torch.quirks import HOST, quirk_of

_PIECE_BYTES = 32 << 20
_HOST_TYPES = {torch.float32: np.float32, torch.int32: np.int32}


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory as a tensor; nothing is copied unless strides or alignment ask for it.

    The array may be read-only (a mapped file): whoever gets the tensor must not write to it.
    """
    array = np.ascontiguousarray(array)
    if array.ctypes.data % array.itemsize:
        array = array.copy()
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor of the host as an array over the same memory; bfloat16 as its bits in uint16."""
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return bits
    return tensor.numpy()


class Transfer:
    """Between the host and one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._thread = threading.local()
        quirk = quirk_of(device)
        self._on_host = quirk.on_host
        self._pins = quirk.pinned and _can_pin(device)

    @contextmanager
    def deferring(self, constant: Callable[[NDArray[Any]], torch.Tensor]) -> Iterator[None]:
        """While a step is recorded on this thread, arrays are either deferred or constant, and
        nothing comes to the host.

        Args:
            constant: gives the tensor of an array that is the same in every such step.
        """
        self._thread.constant = constant
        try:
            yield
        finally:
            self._thread.constant = None

    def upload(self, array: NDArray[Any] | Deferred) -> torch.Tensor:
        """A small array, as it is wanted in a step; it must not change afterwards."""
        if isinstance(array, Deferred):
            return array.tensor
        constant = getattr(self._thread, "constant", None)
        if constant is not None:
            self._thread.constant = None
            try:
                found: torch.Tensor = constant(array)
            finally:
                self._thread.constant = constant
            return found
        tensor = as_tensor(array)
        if self._on_host:
            return tensor
        if self._pins and tensor.numel():
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def download(self, tensor: torch.Tensor) -> NDArray[Any]:
        """A tensor on the host; waits for everything before it.

        Raises:
            NotReplayable: a step is being recorded.
        """
        if getattr(self._thread, "constant", None) is not None:
            raise NotReplayable("a kernel, or a definition, waits for the device")
        return as_array(tensor.detach().to(HOST))

    def fill(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        """Overwrite a tensor, after everything that was asked of the device before."""
        source = as_tensor(array)
        tensor.copy_(source.pin_memory() if self._pins else source, non_blocking=self._pins)

    def download_together(self, tensors: list[torch.Tensor]) -> list[NDArray[Any]]:
        """Several tensors of 4-byte items on the host, in one copy."""
        if self._on_host or len(tensors) == 1:
            return [self.download(tensor) for tensor in tensors]
        pieces = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors]
        ends = np.cumsum([len(piece) for piece in pieces])
        data = np.split(self.download(torch.cat(pieces)), ends[:-1])
        return [
            part.view(_HOST_TYPES[tensor.dtype]).reshape(tuple(tensor.shape))
            for part, tensor in zip(data, tensors, strict=True)
        ]

    def load(self, array: NDArray[Any], alignment: int = 1) -> torch.Tensor:
        """A large array, for instance of a mapped file; where the device is the host, in place.

        Args:
            alignment: the tensor begins at a multiple of so many bytes. Files may put an array
                anywhere, and only in place does that matter.
        """
        if self._on_host:
            return as_tensor(array.copy() if array.ctypes.data % alignment else array)
        source = as_tensor(array)
        if not self._pins or source.nbytes <= _PIECE_BYTES:
            return source.to(self.device)
        target = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        self._in_pieces(source.reshape(-1).view(torch.uint8), target.reshape(-1).view(torch.uint8))
        return target

    def _in_pieces(self, source: torch.Tensor, target: torch.Tensor) -> None:
        # PyTorch keeps pinned memory for the next that asks, so this costs once.
        pieces = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        arrived = [torch.Event(self.device) for _ in range(2)]
        for number, start in enumerate(range(0, len(source), _PIECE_BYTES)):
            turn = number % 2
            part = source[start : start + _PIECE_BYTES]
            if number > 1:
                arrived[turn].synchronize()
            piece = pieces[turn][: len(part)]
            piece.copy_(part)
            target[start : start + len(part)].copy_(piece, non_blocking=True)
            arrived[turn].record()
        synchronize(self.device)


def _can_pin(device: torch.device) -> bool:
    try:
        torch.empty(16, dtype=torch.uint8, pin_memory=True).to(device, non_blocking=True)
        torch.Event(device).record()
        synchronize(device)
    except Exception:
        # A plug-in need not have it, and may say so in any way.
        return False
    return True
