"""The torch backend: tensors are PyTorch's, on whatever device it reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight import __version__
from firstlight.backends.base import Backend, Choice
from firstlight.backends.torch.attention import AttentionKernels
from firstlight.backends.torch.ceilings import measure_ceilings
from firstlight.backends.torch.choosing import ChoosingKernels
from firstlight.backends.torch.compressed import CompressedKernels
from firstlight.backends.torch.decoding import PLAIN, block_decoders
from firstlight.backends.torch.device import (
    all_places,
    cache_bytes_of,
    device_name,
    find_device,
    has_doubles,
    memory_of,
    places_of_range,
    synchronize,
    widens_bfloat16,
)
from firstlight.backends.torch.elementwise import RowKernels
from firstlight.backends.torch.expanded_attention import ExpandedAttentionKernels
from firstlight.backends.torch.experts import ExpertsKernels
from firstlight.backends.torch.graphs import RecordedGraph, Replayer, graphs_of
from firstlight.backends.torch.hyper_connections import hyper_connection_kernels
from firstlight.backends.torch.matrix import DeviceMatrix, put_on_device
from firstlight.backends.torch.paging import MOST_SCORES
from firstlight.backends.torch.products import ProductKernels
from firstlight.backends.torch.quirks import quirk_of
from firstlight.backends.torch.selection import SelectionKernels
from firstlight.backends.torch.transfer import Transfer, as_tensor
from firstlight.backends.torch.triton.kernels import triton_kernels
from firstlight.backends.torch.triton.launching import version as triton_version
from firstlight.backends.torch.triton.product_kernels import product_kernels, triton_products
from firstlight.formats.base import Floats, Weight
from firstlight.host.ceilings import Ceilings
from firstlight.ops.collective import RankGroup
from firstlight.ops.rounding import bfloat16_for_bfloat16, no_rounding
from firstlight.ops.shape import Shape

__all__ = ["TorchBackend", "all_places", "places_of_range"]

_STREAMS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CACHE_BYTES = 64 << 20
"""Of a device that does not say: as much as the largest chips have."""


class TorchBackend(Backend):
    """A device of PyTorch's.

    A row's result does not depend on the batch but for the order of float32 sums, which PyTorch
    chooses by the sizes of a product: up to the ops' tolerances, not to the bit.

    Args:
        place: the device as PyTorch writes it; None: the accelerator it has chosen.
        exact: round no activations: bfloat16 weights and state are widened first.

    Raises:
        DeviceError: there is no such device, or nothing can be computed on it.
    """

    def __init__(self, place: str | None = None, exact: bool = False) -> None:
        self.device = find_device(place)
        self.name = f"torch:{self.device}"
        self._transfer = Transfer(self.device)
        self._buffer: torch.Tensor | None = None
        self._replays = True
        self._replayers: WeakSet[Replayer] = WeakSet()
        narrow = not exact and widens_bfloat16(self.device)
        products = ProductKernels(self._transfer, narrow)
        rounding = bfloat16_for_bfloat16 if narrow else no_rounding
        self._triton_products = triton_products(self._transfer, products, narrow, exact)
        super().__init__(
            (
                *product_kernels(self._transfer, self._triton_products),
                *triton_kernels(self._transfer, exact),
                *products.all(),
                *AttentionKernels(self._transfer, narrow).all(),
                *SelectionKernels(self._transfer).all(),
                *CompressedKernels(self._transfer).all(),
                *ExpandedAttentionKernels(self._transfer).all(),
                *hyper_connection_kernels(),
                *RowKernels(self._transfer).all(),
                *ExpertsKernels(self._transfer, products, rounding).all(),
                *ChoosingKernels(self._transfer, has_doubles(self.device)).all(),
            )
        )

    # Transfer ------------------------------------------------------------------------------

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        return self._transfer.upload(array)

    def download(self, tensor: torch.Tensor) -> Floats:
        return self._transfer.download(tensor)

    def download_together(self, tensors: list[torch.Tensor]) -> list[NDArray[Any]]:
        return self._transfer.download_together(tensors)

    def assign(self, tensor: torch.Tensor, array: NDArray[Any]) -> None:
        source = as_tensor(array)
        if array.dtype == np.uint16:
            source = source.view(torch.bfloat16)
        tensor.copy_(source)

    def pack(self, weight: Weight) -> DeviceMatrix:
        return put_on_device(weight, self._transfer)

    def unpack(self, packed: DeviceMatrix) -> Weight:
        return packed.unpack()

    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> torch.Tensor:
        shape = (pages, page_tokens, *entry)
        return torch.zeros(shape, dtype=_STREAMS[dtype], device=self.device)

    # Steps that replay ---------------------------------------------------------------------

    def replayer(self, compute: Callable[..., torch.Tensor]) -> Replayer | None:
        make = self._make_graph if self._replays else None
        if make is None:
            return None
        made = Replayer(self._transfer, compute, make, self._timed_replay)
        self._replayers.add(made)
        return made

    def forgo_replay(self) -> None:
        self._replays = False

    def remarks(self) -> tuple[str, ...]:
        if not self._replays:
            return ("decode steps are not replayed from graphs, as asked",)
        if self._make_graph is None:
            lacks = "decode steps are not replayed from graphs: the device has none that work"
            return () if self.on_host else (lacks,)
        return tuple(
            f"decode steps are not replayed from graphs: {each.why_not}"
            if each.why_not is not None
            else f"{each.replays} decode steps were replayed from {each.graphs} graphs"
            for each in self._replayers
        )

    def leave_out(self, op: str, kernel: str) -> None:
        super().leave_out(op, kernel)
        self._record_anew()

    def _record_anew(self) -> None:
        for each in self._replayers:
            each.forget()

    @cached_property
    def _make_graph(self) -> Callable[[], RecordedGraph] | None:
        return graphs_of(self.device)

    def _timed_replay(self, replay: Callable[[], None]) -> None:
        self._timed("decode step", "graph", replay, ())

    # Memory ----------------------------------------------------------------------------------

    def available_memory(self) -> int:
        """Without what decoded weights and scores take for a moment, several times over."""
        free, quirk = memory_of(self.device)[0], quirk_of(self.device)
        if quirk.on_host:
            return free
        return max(0, free - 4 * 4 * (quirk.decoded_values + MOST_SCORES))

    def total_memory(self) -> int:
        return memory_of(self.device)[1]

    def is_tensor(self, argument: Any) -> bool:
        return isinstance(argument, torch.Tensor)

    def sized(self, argument: Any) -> Any:
        """A tensor as an array of its shape that takes no memory."""
        if not isinstance(argument, torch.Tensor):
            return argument
        value = np.zeros((), np.uint16 if argument.dtype == torch.bfloat16 else np.float32)
        return np.broadcast_to(value, tuple(argument.shape))

    def is_packed(self, argument: Any) -> bool:
        return isinstance(argument, DeviceMatrix)

    # Tuning ------------------------------------------------------------------------------

    def apply_tuning(self, op: str, shape: Shape, choice: Choice | None) -> None:
        """Blocks are told of products, which they compute without asking dispatch."""
        super().apply_tuning(op, shape, choice)
        if op == "linear" and self._triton_products is not None:
            self._triton_products.tune(shape, None if choice is None else self.ready(op, choice))
        self._record_anew()

    # What the device is ------------------------------------------------------------------

    def device_name(self) -> str:
        return device_name(self.device)

    def device_key(self) -> str:
        threads = f", {torch.get_num_threads()} threads" if self.on_host else ""
        return f"{self.name}: {self.device_name()}{threads}, PyTorch {torch.__version__}"

    def identity(self) -> str:
        built = [path.stat() for path in sorted(Path(__file__).parent.rglob("*.py"))]
        newest = max(each.st_mtime_ns for each in built)
        size = sum(each.st_size for each in built)
        compiler = f"{triton_version(self.device)}, ".lstrip(", ")
        return f"{self.device_key()}, {compiler}firstlight {__version__}, kernels {size}-{newest}"

    def measure_ceilings(self) -> Ceilings:
        return measure_ceilings(self.device, self.cache_bytes())

    def fast_formats(self) -> frozenset[str]:
        return frozenset((*PLAIN, *block_decoders()))

    def synchronize(self) -> None:
        synchronize(self.device)

    def cache_bytes(self) -> int:
        if self.on_host:
            return super().cache_bytes()
        return cache_bytes_of(self.device) or _CACHE_BYTES

    def evict_caches(self) -> None:
        if self._buffer is None:
            self._buffer = torch.ones(3 * self.cache_bytes() // 8, device=self.device)
        self._buffer.sum()
        self.synchronize()

    @property
    def on_host(self) -> bool:
        return quirk_of(self.device).on_host

    def join_ranks(self, rank: int, ranks: int, folder: Path, seconds: float) -> RankGroup:
        from firstlight.backends.torch.ranks import TorchRanks  # which takes its time to import

        return TorchRanks(self.device, rank, ranks, folder, seconds)
