"""How fast a device could go at best: measured memory bandwidth and matrix peak.

Every speed that firstlight reports stands beside these. They are measured, not looked up, because
what a data sheet promises is not what a shared, throttled or badly cooled machine gives. Measuring
takes a few seconds, so the result is kept in the cache directory.

A backend with kernels of its own passes its probes in; what is here needs NumPy only and serves
the host's processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.errors import FirstlightError
from firstlight.host.cache import cache_directory, write_atomically
from firstlight.host.memory import available_memory
from firstlight.host.processor import processor, usable_cores
from firstlight.progress import ProgressFactory, progress

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

BandwidthProbe = Callable[[int, int], float]
"""(bytes of the buffer, threads) -> bytes read per second."""

MatrixProbe = Callable[[float], float]
"""(seconds it may take) -> floating-point operations per second in a product of matrices."""

_LAYOUT = 1
"""Raised whenever the meaning of a cached figure changes."""

_MINIMUM_BUFFER_BYTES = 512 << 20


@dataclass(frozen=True)
class Ceilings:
    """The best a device did in a plain measurement.

    Attributes:
        device: the device's name.
        bandwidth_bytes_per_second: reading main memory with all cores, each byte once.
        matrix_operations_per_second: dtype ("f32", "f64", "bf16"...) -> multiplications and
            additions per second in a product of two matrices.
        measured_at: when, ISO 8601 in UTC.
        how: with what means, for people.
    """

    device: str
    bandwidth_bytes_per_second: float
    matrix_operations_per_second: dict[str, float] = field(default_factory=dict)
    measured_at: str = ""
    how: str = ""


def measure_ceilings(
    device: str | None = None,
    *,
    bandwidth: BandwidthProbe | None = None,
    matrix: Mapping[str, MatrixProbe] | None = None,
    buffer_bytes: int | None = None,
    threads: int | None = None,
    seconds: float = 3.5,
    how: str = "",
    progress: ProgressFactory = progress,
) -> Ceilings:
    """Measure a device, by default the host's processor with NumPy.

    Args:
        device: its name; the processor's if None.
        bandwidth: replaces NumPy's way of reading memory.
        matrix: probes for further dtypes, or better ones for f32 and f64. A figure is the better
            of NumPy's and the probe's, since a ceiling is what the device can reach by any means.
        buffer_bytes: how much memory to read; if None four times the last cache and at least
            512 MiB, but never more than half of what is available.
        threads: how many threads read at once; all usable cores if None.
        seconds: about how long to measure in all; filling the buffer comes on top of it.
        how: words about the probes that are passed in.
    """
    cores = threads or usable_cores()
    size = buffer_bytes or _buffer_bytes()
    probes: list[tuple[str, MatrixProbe]] = [
        ("f32", _numpy_matrix_probe("float32")),
        ("f64", _numpy_matrix_probe("float64")),
        *(matrix or {}).items(),
    ]
    operations: dict[str, float] = {}
    share = seconds / (1 + len(probes))
    with progress("Measuring the device", total=1 + len(probes), unit="figures") as advance:
        if bandwidth is None:
            bytes_per_second = _numpy_bandwidth(size, cores, share)
        else:
            bytes_per_second = bandwidth(size, cores)
        advance(1)
        for dtype, probe in probes:
            operations[dtype] = max(probe(share), operations.get(dtype, 0.0))
            advance(1)
    means = f"{size >> 20} MiB read by {cores} thread(s), NumPy matrix products"
    return Ceilings(
        device=device or processor().name,
        bandwidth_bytes_per_second=bytes_per_second,
        matrix_operations_per_second=operations,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        how=f"{means}; {how}" if how else means,
    )


def cached_ceilings(
    device: str,
    version: str,
    measure: Callable[[], Ceilings],
    *,
    refresh: bool = False,
    directory: Path | None = None,
) -> Ceilings:
    """The ceilings of a device: from the cache, or measured now and kept.

    A cache file that is missing, damaged or of another device or version is measured anew; one
    that cannot be written is done without.

    Args:
        device: names the device and all that decides its speed (cores in use, for instance).
        version: of firstlight and of the driver, so that an update measures again.
        measure: called without arguments when there is nothing usable.
        refresh: measure even so.
        directory: where the files are; the cache directory's `ceilings` if None.
    """
    path, key = _entry(device, version, directory)
    found = None if refresh else _read(path, key)
    if found is not None:
        return found
    ceilings = measure()
    content = json.dumps({"key": key, "ceilings": asdict(ceilings)}, indent=2).encode()
    with contextlib.suppress(FirstlightError):
        write_atomically(path, lambda file: file.write(content))
    return ceilings


def read_ceilings(device: str, version: str, *, directory: Path | None = None) -> Ceilings | None:
    """The ceilings of a device from the cache, or None where they have not been measured."""
    return _read(*_entry(device, version, directory))


def _entry(device: str, version: str, directory: Path | None) -> tuple[Path, dict[str, object]]:
    """The cache file of a device, and the key that must stand in it."""
    key: dict[str, object] = {"layout": _LAYOUT, "device": device, "version": version}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return (directory or cache_directory() / "ceilings") / f"{name}.json", key


def _read(path: Path, key: dict[str, object]) -> Ceilings | None:
    """The cached ceilings, None unless every part is present and makes sense."""
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != key:
            return None
        stored = content["ceilings"]
        ceilings = Ceilings(
            device=str(stored["device"]),
            bandwidth_bytes_per_second=float(stored["bandwidth_bytes_per_second"]),
            matrix_operations_per_second={
                str(dtype): float(speed)
                for dtype, speed in stored["matrix_operations_per_second"].items()
            },
            measured_at=str(stored["measured_at"]),
            how=str(stored["how"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    speeds = [
        ceilings.bandwidth_bytes_per_second,
        *ceilings.matrix_operations_per_second.values(),
    ]
    return ceilings if all(math.isfinite(speed) and speed > 0 for speed in speeds) else None


def _buffer_bytes() -> int:
    wanted = max(_MINIMUM_BUFFER_BYTES, 4 * processor().last_level_cache_bytes)
    return max(1 << 20, min(wanted, available_memory() // 2))


def _numpy_bandwidth(size: int, threads: int, seconds: float) -> float:
    """Bytes per second that `threads` threads read together, the best of several passes.

    NumPy releases the interpreter lock while it sums, and a sum of integers costs so little
    arithmetic that memory decides its pace.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    buffer = np.empty(max(1, size // 8), np.uint64)
    parts = np.array_split(buffer, threads)
    with ThreadPoolExecutor(threads) as pool:
        # Each thread writes its own part first, so that on machines with several memory
        # controllers the pages lie near the core that reads them; untouched pages would all be
        # one and the same page of zeros.
        list(pool.map(lambda part: part.fill(1), parts))
        best = 0.0
        end = time.perf_counter() + seconds
        passes = 0
        while passes < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, buffer.nbytes / (time.perf_counter() - begin))
            passes += 1
    return best


def _numpy_matrix_probe(dtype: DTypeLike) -> MatrixProbe:
    """A probe that multiplies square matrices with the BLAS that NumPy was built with."""

    def probe(seconds: float) -> float:
        import numpy as np

        # A small product first tells how large one may be, so that slow machines keep the time.
        best, size = 0.0, 256
        end = time.perf_counter() + seconds
        while True:
            left = np.full((size, size), 0.5, dtype)
            product = np.empty_like(left)
            elapsed = 0.0
            for _ in range(2):
                begin = time.perf_counter()
                np.matmul(left, left, out=product)
                elapsed = time.perf_counter() - begin
                best = max(best, 2 * size**3 / elapsed)
            remaining = end - time.perf_counter()
            if remaining < 2 * elapsed:
                return best
            if size < 2048 and remaining > 3 * 8 * elapsed:
                size *= 2

    return probe
