"""The chips. `open_device` is the only door: a backend is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from firstlight.backends.base import Backend
from firstlight.errors import DeviceError

# name -> module and class; imported only when used, so that no vendor's package is needed.
_BACKENDS = {
    "numpy": ("firstlight.backends.numpy.backend", "NumpyBackend"),
    "cpu": ("firstlight.backends.cpu.backend", "CpuBackend"),
}


def backend_names() -> tuple[str, ...]:
    """Every backend that firstlight has, whether or not this machine can use it."""
    return tuple(_BACKENDS)


def available_devices() -> tuple[str, ...]:
    """The backends that can run on this machine."""
    return tuple(_BACKENDS)


def open_device(name: str) -> Backend:
    """The backend of that name, ready for use.

    Raises:
        DeviceError: unknown name, or the backend cannot run on this machine.
    """
    if name not in _BACKENDS:
        raise DeviceError(
            f"device {name!r}",
            "firstlight has no backend of that name",
            f"Choose one of: {', '.join(_BACKENDS)}",
        )
    module, attribute = _BACKENDS[name]
    backend: Backend = getattr(import_module(module), attribute)()
    return backend
