"""What a device reaches at best, measured with PyTorch: reading memory, multiplying matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import torch

from firstlight.backends.torch.device import device_name, memory_of, synchronize
from firstlight.host.ceilings import Ceilings
from firstlight.progress import ProgressFactory, progress

_MOST_BYTES = 2 << 30
_MOST_SIZE = 8192
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_SECONDS = 0.7


def measure_ceilings(
    device: torch.device, cache_bytes: int, *, progress: ProgressFactory = progress
) -> Ceilings:
    """Measure a device; takes a few seconds.

    Args:
        cache_bytes: of its caches: far more is read.
    """
    size = min(_MOST_BYTES, max(256 << 20, 8 * cache_bytes), memory_of(device)[0] // 4)
    operations = {}
    with progress("Measuring the device", total=1 + len(_DTYPES), unit="figures") as advance:
        bandwidth = _bandwidth(device, max(1 << 20, size))
        advance(1)
        for name, dtype in _DTYPES.items():
            speed = _matrix_peak(device, dtype)
            if speed is not None:
                operations[name] = speed
            advance(1)
    return Ceilings(
        device=device_name(device),
        bandwidth_bytes_per_second=bandwidth,
        matrix_operations_per_second=operations,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        how=f"{size >> 20} MiB read, and square matrices multiplied, by PyTorch "
        f"{torch.__version__}",
    )


def _bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, the best of reading alone (a sum) and of reading and writing (a copy)."""
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    half = len(buffer) // 2
    read = _best_seconds(device, lambda: buffer.sum())
    copied = _best_seconds(device, lambda: buffer[:half].copy_(buffer[half : 2 * half]))
    return max(buffer.nbytes / read, 8 * half / copied)


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second, larger matrices as long as that takes little; None: it has none."""
    best, size = 0.0, 512
    try:
        while True:
            matrix = torch.full((size, size), 0.5, dtype=dtype, device=device)
            seconds = _best_seconds(device, partial(torch.mm, matrix, matrix), _SECONDS / 4)
            best = max(best, 2 * size**3 / seconds)
            if size >= _MOST_SIZE or 3 * 8 * seconds > _SECONDS:
                return best
            size *= 2
    except RuntimeError:
        # NotImplementedError and running out of memory are RuntimeErrors too.
        return best or None


def _best_seconds(
    device: torch.device, run: Callable[[], object], seconds: float = _SECONDS / 2
) -> float:
    """The shortest time of several runs, three at least after one to warm up."""
    run()
    synchronize(device)
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        runs += 1
    return best
