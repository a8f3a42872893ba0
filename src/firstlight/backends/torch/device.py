"""Which device is meant, and what PyTorch says of it.

`torch.accelerator` speaks for the accelerator of this machine, whoever made it; an out-of-tree
plug-in registers itself when PyTorch is imported (entry points of the group torch.backends).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from firstlight.backends.torch.quirks import HOST, INSTEAD, quirk_of
from firstlight.errors import DeviceError
from firstlight.host.memory import available_memory, total_memory
from firstlight.host.processor import processor, usable_cores

_USE_INSTEAD = f"Use --device {INSTEAD} or --device cpu"


def find_device(place: str | None) -> torch.device:
    """The device of that name, with its index; None: the accelerator that PyTorch has chosen.

    Raises:
        DeviceError: there is no such device here, or nothing can be computed on it.
    """
    if place is None:
        current = torch.accelerator.current_accelerator(check_available=True)
        if current is None:
            raise DeviceError(
                "device 'torch'",
                f"PyTorch {torch.__version__} finds no accelerator on this machine",
                f"{_USE_INSTEAD}; for an accelerator install PyTorch's build for it, or its "
                "maker's plug-in, and its driver",
            )
        return _working(current, "torch")
    try:
        device = torch.device(place)
    except RuntimeError as error:
        raise DeviceError(
            f"device 'torch:{place}'",
            f"PyTorch {torch.__version__} knows no device of that name",
            f"{_USE_INSTEAD}, a name as PyTorch writes it (its type, or type:index), or install "
            "the plug-in of the chip's maker",
        ) from error
    return _working(device, f"torch:{place}")


def _working(device: torch.device, name: str) -> torch.device:
    """The device with its index, after something went there and came back."""
    try:
        there = torch.arange(3, dtype=torch.float32).to(device)
        back = (there + there).to(HOST)
    except Exception as error:
        # What a driver or plug-in raises where its chip is missing is anyone's guess.
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise DeviceError(
            f"device {name!r}",
            f"nothing can be computed on it ({reason})",
            f"{_USE_INSTEAD}, or check its driver and which devices there are: firstlight devices",
        ) from error
    if back.tolist() != [0.0, 2.0, 4.0]:
        raise DeviceError(f"device {name!r}", "it adds wrongly", f"{_USE_INSTEAD}")
    return there.device


def all_places() -> tuple[str, ...]:
    """Every device that PyTorch finds here, as it writes them: accelerators first."""
    found = []
    current = torch.accelerator.current_accelerator(check_available=True)
    if current is not None:
        found = [f"{current.type}:{index}" for index in range(torch.accelerator.device_count())]
    return (*found, HOST.type)


def places_of_range(kind: str, first: int, last: int) -> tuple[str, ...]:
    """The devices of a type from one index to another, one for each rank of a model. Of the host's
    processor, which is one device, every rank gets its share.

    Raises:
        DeviceError: there are not so many, or PyTorch knows no such type.
    """
    name, count = f"device 'torch:{kind}:{first}-{last}'", last - first + 1
    try:
        device = torch.device(kind)
    except RuntimeError as error:
        raise DeviceError(
            name,
            f"PyTorch {torch.__version__} knows no type of that name",
            "Name a type as PyTorch writes it, or install the plug-in of the chip's maker",
        ) from error
    if quirk_of(device).on_host:
        most = max(2, usable_cores())
        if count > most:
            raise DeviceError(
                name, f"{count} ranks have no core each", f"Use at most {most}: 0-{most - 1}"
            )
        return (kind,) * count
    there = torch.accelerator.device_count() if is_accelerator(device) else last + 1
    if last >= there:
        which = f"one, {kind}:0" if there == 1 else f"{there}, numbered from 0"
        raise DeviceError(
            name,
            f"of that type there {'are' if there > 1 else 'is'} {which if there else 'none'}",
            "See which there are: firstlight devices",
        )
    return tuple(f"{kind}:{index}" for index in range(first, last + 1))


def is_accelerator(device: torch.device) -> bool:
    """Whether `torch.accelerator` speaks for it."""
    current = torch.accelerator.current_accelerator()
    return current is not None and current.type == device.type


def _ask(device: torch.device, name: str) -> Callable[..., Any] | None:
    """A function of the module that PyTorch has for the device's type, if it has one."""
    with contextlib.suppress(Exception):
        return getattr(torch.get_device_module(device), name, None)
    return None


def synchronize(device: torch.device) -> None:
    """Wait until everything asked of the device is done."""
    if quirk_of(device).on_host:
        return
    if is_accelerator(device):
        torch.accelerator.synchronize(device)
    elif (wait := _ask(device, "synchronize")) is not None:
        wait()


def device_name(device: torch.device) -> str:
    """The chip's name, as its driver calls it."""
    if quirk_of(device).on_host:
        return processor().name
    name = _ask(device, "get_device_name")
    with contextlib.suppress(Exception):
        if name is not None:
            return str(name(device))
    return str(device)


def memory_of(device: torch.device) -> tuple[int, int]:
    """(bytes that can still be allocated, bytes of all the device's memory).

    What PyTorch's allocator holds for later counts as free. A device that cannot tell is taken to
    have the host's memory.
    """
    quirk = quirk_of(device)
    if quirk.memory is not None:
        return quirk.memory()
    if not quirk.on_host and is_accelerator(device):
        with contextlib.suppress(Exception):
            free, total = torch.accelerator.get_memory_info(device)
            with contextlib.suppress(Exception):
                free += torch.accelerator.memory_reserved(device)
                free -= torch.accelerator.memory_allocated(device)
            return min(int(free), int(total)), int(total)
    return available_memory(), total_memory()


def cache_bytes_of(device: torch.device) -> int | None:
    """Bytes of the chip's last cache, if its driver says so."""
    properties = _ask(device, "get_device_properties")
    with contextlib.suppress(Exception):
        if properties is not None:
            return int(properties(device).L2_cache_size) or None
    return None


def widens_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices can be had as float32 sums, unrounded."""
    # 1 + 2^-12 is no bfloat16 number.
    left = torch.tensor([[1.0, 2.0**-12]]).to(device, torch.bfloat16)
    right = torch.ones((2, 2)).to(device, torch.bfloat16)
    wanted = [[1.0 + 2.0**-12] * 2]
    try:
        plain = torch.mm(left, right, out_dtype=torch.float32)
        batched = torch.bmm(left[None], right[None], out_dtype=torch.float32)[0]
    except Exception:
        # A device without it may say so in any way.
        return False
    return plain.to(HOST).tolist() == wanted == batched.to(HOST).tolist()


def has_doubles(device: torch.device) -> bool:
    """Whether float64 numbers can be summed there."""
    try:
        numbers = torch.tensor([1.0, 2.0**-40], dtype=torch.float64).to(device)
        return torch.cumsum(numbers, 0).to(HOST).tolist() == [1.0, 1.0 + 2.0**-40]
    except Exception:
        # A device without it may say so in any way.
        return False
