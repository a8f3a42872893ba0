"""Which kernels may serve here: those that agreed with the definition on this very device.

The short selection of cases runs once for each device, instruction set and build of firstlight;
the verdict is kept in the cache directory, so that a later start reads one small file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from firstlight.backends.base import Backend
from firstlight.errors import FirstlightError
from firstlight.host.cache import cache_directory, write_atomically

_LAYOUT = 1
"""Raised whenever the meaning of a cached verdict changes."""

# Set to anything but "" or "0", the check is skipped and every kernel serves.
SKIP_VARIABLE = "FIRSTLIGHT_SKIP_KERNEL_CHECK"


@dataclass(frozen=True)
class Distrust:
    """A kernel that did not agree with its definition.

    Attributes:
        op, kernel: its names.
        why: on which case, and by how much.
    """

    op: str
    kernel: str
    why: str


def distrusted_kernels(backend: Backend, *, directory: Path | None = None) -> tuple[Distrust, ...]:
    """The kernels of a backend that must not serve on its device; from the cache if it is there.

    Args:
        backend: whose kernels are checked, anew for each identity and set of kernels; one
            without kernels is trusted at once.
        directory: where verdicts are kept; the cache directory's `trust` if None. One that
            cannot be read or written is done without.
    """
    kernels = [f"{kernel.op}/{kernel.name}" for kernel in backend.kernels()]
    if not kernels or os.environ.get(SKIP_VARIABLE, "") not in ("", "0"):
        return ()
    key = {
        "layout": _LAYOUT,
        "backend": backend.name,
        "identity": backend.identity(),
        "kernels": kernels,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = (
        directory or cache_directory() / "trust"
    ) / f"{backend.name.replace(':', '-')}-{name}.json"
    known = _read(path, key)
    if known is not None:
        return known
    verdict = _judge(backend)
    content = {"key": key, "distrusted": [vars(found) for found in verdict]}
    with contextlib.suppress(FirstlightError):
        write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode()))
    return verdict


def _judge(backend: Backend) -> tuple[Distrust, ...]:
    from firstlight.verify.conformance import check_kernels

    worst: dict[tuple[str, str], Distrust] = {}
    for report in check_kernels(backend, quick=True):
        if not report.passed:
            found = Distrust(report.op, report.kernel, str(report))
            worst.setdefault((report.op, report.kernel), found)
    return tuple(worst.values())


def _read(path: Path, key: dict[str, object]) -> tuple[Distrust, ...] | None:
    """The cached verdict, None unless every part is present and makes sense."""
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return None
        return tuple(
            Distrust(str(found["op"]), str(found["kernel"]), str(found["why"]))
            for found in content["distrusted"]
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
