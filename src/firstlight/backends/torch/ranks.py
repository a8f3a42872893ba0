"""Sums over several devices, each with a process of its own, through torch.distributed.

Which library carries them PyTorch knows for each type of device. Where it knows none, sums go
through the host's memory. Processes find each other through a file, and talk over the loopback
interface or whatever their devices share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from torch import distributed

from firstlight.backends.torch.quirks import HOST, quirk_of
from firstlight.errors import DeviceError
from firstlight.ops.collective import RanksError

_LOOPBACK = "127.0.0.1"


class TorchRanks:
    """A `RankGroup` over tensors of one device.

    PyTorch has one such group in a process.

    Args:
        folder: that every rank can reach and nobody else, empty at first.
        seconds: how long a rank waits for the others.

    Raises:
        DeviceError: PyTorch has no torch.distributed, or the process has a group already.
        RanksError: not all ranks have come in time.
    """

    def __init__(
        self, device: torch.device, rank: int, ranks: int, folder: Path, seconds: float
    ) -> None:
        self._left = False
        library = _library(device)
        # Where the library takes tensors from, if not from the device itself.
        self._instead = HOST if library is None else None
        library = library or _library_of_host()
        # Of one host: no other interface need be listened at. Libraries agree on these names.
        os.environ.setdefault(f"{library.upper()}_SOCKET_IFNAME", _loopback_interface())
        with _others():
            store = distributed.FileStore(str(folder / "ranks"), ranks)  # type: ignore[attr-defined]
            try:
                distributed.init_process_group(
                    library,
                    store=store,
                    rank=rank,
                    world_size=ranks,
                    timeout=timedelta(seconds=seconds),
                )
            except BaseException:
                # PyTorch names groups by a count of its own, which goes on where one fails: the
                # next would have another name here than in ranks that are new.
                distributed.distributed_c10d._world.group_count = 0
                raise
        self._leave_threads = _share_threads(device, ranks)

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        here = self._given(part.contiguous())
        with _others():
            distributed.all_reduce(here)
        return here.to(part.device)

    def join_columns(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        # Libraries want parts of one shape.
        padded = part.new_zeros((part.shape[0], max(widths)))
        padded[:, : part.shape[1]] = part
        mine = self._given(padded)
        parts = [torch.empty_like(mine) for _ in widths]
        with _others():
            distributed.all_gather(parts, mine)
        whole = torch.cat([each[:, :width] for each, width in zip(parts, widths, strict=True)], 1)
        return whole.to(part.device)

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._instead is None else tensor.to(self._instead)

    def leave(self) -> None:
        if self._left:
            return
        self._left = True
        with suppress(Exception):
            group = distributed.group.WORLD
            if group is not None:
                group.abort()
        with suppress(Exception):
            distributed.destroy_process_group()
        self._leave_threads()


def _library(device: torch.device) -> str | None:
    """What sums tensors of the device where they lie; None: nothing."""
    if not distributed.is_available():
        raise DeviceError(
            f"several devices of type {device.type!r}",
            f"PyTorch {torch.__version__} was built without torch.distributed",
            "Use one device, or another build of PyTorch",
        )
    if distributed.is_initialized():
        raise DeviceError(
            f"several devices of type {device.type!r}",
            "this process has a group of torch.distributed already, and can have one",
            "Load one such model in a process, or let go of the first (del model)",
        )
    with suppress(ValueError):  # it knows of none
        library = str(distributed.get_default_backend_for_device(device))
        if distributed.is_backend_available(library):
            return library
    return None


def _library_of_host() -> str:
    return str(distributed.get_default_backend_for_device(HOST))


@contextmanager
def _others() -> Iterator[None]:
    """What a library raises where other ranks fail, as a `RanksError`."""
    try:
        yield
    except RuntimeError as error:
        raise RanksError(str(error).strip().partition("\n")[0]) from error


def _share_threads(device: torch.device, ranks: int) -> Callable[[], None]:
    """Where ranks compute on the host's cores, use this rank's share of them; gives what undoes
    that."""
    before = torch.get_num_threads()
    if quirk_of(device).on_host:
        torch.set_num_threads(max(1, before // ranks))
    return lambda: torch.set_num_threads(before)


def _loopback_interface() -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == _LOOPBACK for address in addresses):
            return name
    return "lo"
