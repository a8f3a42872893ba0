"""Whether Triton's kernels run on a device, found out by asking Triton and by running one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.util import find_spec

import torch

from firstlight.backends.torch.quirks import quirk_of

_LEAST_SHARED = 64 << 10


@cache
def usable(device: torch.device) -> bool:
    """Whether kernels in Triton can be launched on tensors of this device.

    That is so where Triton has a driver for the device and a small kernel gave the right numbers,
    and on the host where Triton interprets its kernels (TRITON_INTERPRET=1, set before Triton is
    imported): slowly, so that they can be tested without a chip.
    """
    if find_spec("triton") is None:
        return False
    try:
        if interpreted():
            return quirk_of(device).on_host and _tried(device)
        from triton.runtime import driver

        return bool(driver.active.get_active_torch_device().type == device.type) and _tried(device)
    except Exception:
        # No driver, two of them, no compiler on this machine: each is raised as something else.
        return False


def interpreted() -> bool:
    """Whether Triton interprets kernels instead of compiling them."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def version(device: torch.device) -> str:
    """Of the Triton that serves on this device, as it belongs among what results depend on; empty
    where none does."""
    if not usable(device):
        return ""
    import triton

    return f"Triton {triton.__version__}{' interpreted' if interpreted() else ''}"


def on(device: torch.device) -> AbstractContextManager[object]:
    """Within it kernels are launched on this device: Triton takes PyTorch's current one, which
    need not be where the tensors lie."""
    if device.index is None or quirk_of(device).on_host:
        return nullcontext()
    if torch.accelerator.current_device_index() == device.index:
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def _tried(device: torch.device) -> bool:
    from firstlight.backends.torch.triton.trial import works

    with on(device):
        return works(device)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that the threads of one program can share, as Triton's driver says; what every chip
    has, where it does not."""
    with suppress(Exception):
        from triton.runtime import driver

        found = driver.active.utils.get_device_properties(device.index or 0)
        return max(_LEAST_SHARED, int(found["max_shared_mem"]))
    return _LEAST_SHARED
