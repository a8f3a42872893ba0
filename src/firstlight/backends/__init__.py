"""The chips. `open_device` is the only door: a backend is imported when it is asked for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from firstlight.backends.base import Backend
from firstlight.errors import DeviceError


class DeviceWarning(UserWarning):
    """A device works, but not as it could."""


@dataclass(frozen=True)
class _Entry:
    """Where a backend is, and what happens where it cannot be imported.

    Attributes:
        module, backend: of the `Backend` class.
        needs: the module without which the import fails.
        part: what that module is to the user.
        remedy: what to do about that.
        instead: the backend that stands in then; None: there is none, and opening is an error.
        rounds: whether its kernels may round activations, unless it is made with exact=True.
        places: whether it reaches several devices; after a colon its name may say which, and its
            module's `all_places` tells which there are.
    """

    module: str
    backend: str
    needs: str = ""
    part: str = ""
    remedy: str = ""
    instead: str | None = None
    rounds: bool = False
    places: bool = False


# Imported only when used, so that no vendor's package is needed.
_BACKENDS = {
    "numpy": _Entry("firstlight.backends.numpy.backend", "NumpyBackend"),
    "cpu": _Entry(
        "firstlight.backends.cpu.backend",
        "CpuBackend",
        needs="firstlight.backends.cpu._native",
        part="its C++ extension",
        remedy="Install a C++20 compiler and reinstall firstlight",
        instead="numpy",
        rounds=True,
    ),
    "torch": _Entry(
        "firstlight.backends.torch.backend",
        "TorchBackend",
        needs="torch",
        part="PyTorch",
        remedy="Install it (pip install firstlight[torch]), or use --device cpu; with it, "
        "--device torch:cpu works on any machine",
        rounds=True,
        places=True,
    ),
}


def backend_names() -> tuple[str, ...]:
    """Every backend that firstlight has, whether or not this machine can use it."""
    return tuple(_BACKENDS)


def available_devices() -> tuple[str, ...]:
    """The devices that can be opened on this machine as themselves."""
    return tuple(device for name, entry in _BACKENDS.items() for device in _devices(name, entry))


def _devices(name: str, entry: _Entry) -> tuple[str, ...]:
    if entry.places and find_spec(entry.needs) is None:
        return ()
    try:
        module = import_module(entry.module)
    except ImportError:
        return ()
    return tuple(f"{name}:{place}" for place in module.all_places()) if entry.places else (name,)


def rank_devices(name: str) -> tuple[str, ...]:
    """The devices that a name stands for: itself, or those of a range, which compute a model
    together ("torch:TYPE:FIRST-LAST").

    Raises:
        DeviceError: it is no range, or not all of its devices are there.
    """
    backend_name, _, place = name.partition(":")
    kind, colon, numbers = place.rpartition(":")
    entry = _BACKENDS.get(backend_name)
    if entry is None or not (entry.places and colon and "-" in numbers):
        return (name,)
    first, _, last = numbers.partition("-")
    whole = all(each.isascii() and each.isdigit() and len(each) < 6 for each in (first, last))
    if not whole or int(last) < int(first):
        raise DeviceError(
            f"device {name!r}",
            f"{numbers!r} is no range of devices",
            f"Give the first and the last, as {backend_name}:{kind}:0-1",
        )
    try:
        module = import_module(entry.module)
    except ImportError as error:
        raise _missing(name, entry, error) from error
    places = module.places_of_range(kind, int(first), int(last))
    return tuple(f"{backend_name}:{each}" for each in places)


def _missing(name: str, entry: _Entry, error: ImportError) -> DeviceError:
    """Why a backend cannot be imported."""
    reason = f"{entry.needs} does not load ({error})"
    if entry.needs and find_spec(entry.needs) is None:
        reason = f"firstlight was installed without {entry.part}"
    return DeviceError(f"device {name!r}", reason, entry.remedy)


def open_device(name: str, *, exact: bool = False, check_kernels: bool = True) -> Backend:
    """The backend of that name, ready for use.

    Kernels serve only where they agreed with the definitions on this device; the check runs once
    for each device and build, and a warning names the kernels that were left out. Where the cpu
    backend's extension is missing, the numpy backend takes its place, with a warning.

    Args:
        name: one of backend_names(); of a backend that reaches several devices, after a colon
            which: "torch:cpu" (docs/torch.md).
        exact: round no activations (ops/rounding.py): every product sums float32 values. Where a
            backend rounds none anyway, this changes nothing.
        check_kernels: False trusts every kernel unseen; so does the environment variable
            FIRSTLIGHT_SKIP_KERNEL_CHECK=1.

    Raises:
        DeviceError: unknown name, or the backend cannot run on this machine.
    """
    backend_name, colon, place = name.partition(":")
    entry = _BACKENDS.get(backend_name)
    if entry is None or (colon and not (entry.places and place)):
        raise DeviceError(
            f"device {name!r}",
            "firstlight has no backend of that name",
            f"Choose one of: {', '.join(_BACKENDS)}",
        )
    if len(rank_devices(name)) > 1:
        raise DeviceError(
            f"device {name!r}", "stands for several devices, and here one is needed", "Name one"
        )
    try:
        kind = getattr(import_module(entry.module), entry.backend)
    except ImportError as error:
        missing = _missing(name, entry, error)
        if entry.instead is None:
            raise missing from error
        _warn_once(
            f"{missing.subject}: {missing.reason}. Running on the {entry.instead} backend, slowly. "
            f"{entry.remedy}."
        )
        return open_device(entry.instead, exact=exact, check_kernels=check_kernels)
    backend: Backend
    if entry.places:
        backend = kind(place or None, exact=exact)
    else:
        backend = kind(exact=exact) if entry.rounds else kind()
    if check_kernels:
        from firstlight.verify.trust import distrusted_kernels

        distrusted = distrusted_kernels(backend)
        if distrusted:
            _warn_once(
                f"device {name}: kernels that disagree with their definition on this device were "
                f"left out, and their ops run slowly: {'; '.join(d.why for d in distrusted)}"
            )
        for found in distrusted:
            backend.leave_out(found.op, found.kernel)
    return backend


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, DeviceWarning, stacklevel=3)
