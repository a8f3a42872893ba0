"""Sums over several devices, each with a process of its own, through torch.distributed.

Which library carries them PyTorch knows for each type of device; for the host's processor that is
gloo. Processes find each other through a file, and talk over the loopback interface or whatever
their devices share.
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

from firstlight.backends.torch.quirks import quirk_of
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
        DeviceError: there is no library for this type of device, or the process has a group.
        RanksError: not all ranks have come in time.
    """

    def __init__(
        self, device: torch.device, rank: int, ranks: int, folder: Path, seconds: float
    ) -> None:
        self._left = False
        library = _library(device)
        # Of one host: no other interface need be listened at. Libraries agree on these names.
        os.environ.setdefault(f"{library.upper()}_SOCKET_IFNAME", _loopback_interface())
        self._leave_threads = _share_threads(device, ranks)
        with _others():
            distributed.init_process_group(
                library,
                store=distributed.FileStore(str(folder / "ranks"), ranks),
                rank=rank,
                world_size=ranks,
                timeout=timedelta(seconds=seconds),
            )

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        part = part.contiguous()
        with _others():
            distributed.all_reduce(part)
        return part

    def join_columns(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        # Libraries want parts of one shape.
        mine = part.new_zeros((part.shape[0], max(widths)))
        mine[:, : part.shape[1]] = part
        parts = [torch.empty_like(mine) for _ in widths]
        with _others():
            distributed.all_gather(parts, mine)
        return torch.cat([each[:, :width] for each, width in zip(parts, widths, strict=True)], 1)

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


def _library(device: torch.device) -> str:
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
    library = distributed.get_default_backend_for_device(device)
    if not distributed.is_backend_available(library):
        raise DeviceError(
            f"several devices of type {device.type!r}",
            f"PyTorch's library for them, {library}, is not there",
            "Use one device, or a build of PyTorch that has it",
        )
    return str(library)


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
