"""The threads of the cpu backend: what they share, and the cores that they stay on."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from firstlight.backends.cpu.backend import CpuBackend
from firstlight.formats.registry import get_format
from firstlight.verify.random_weights import random_weight

_PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from firstlight.backends.cpu.backend import CpuBackend
from firstlight.formats.registry import get_format
from firstlight.verify.random_weights import random_weight

def cores_of_threads():
    return {
        int(task.name): os.sched_getaffinity(int(task.name))
        for task in Path("/proc/self/task").iterdir()
    }

generator = np.random.default_rng(0)
weight = random_weight(get_format("f32"), 512, 512, generator)
x = generator.standard_normal((4, 512), dtype=np.float32)
allowed = os.sched_getaffinity(0)
before = set(cores_of_threads())
backend = CpuBackend(threads=len(allowed) + int(sys.argv[1]))
backend.linear(x, weight)
after = cores_of_threads()
assert os.sched_getaffinity(0) == allowed
helpers = [cores for thread, cores in after.items() if thread not in before]
print(len(helpers), sum(len(cores) == 1 for cores in helpers), len(set().union(*helpers)))
"""


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 1000, 4099])
def test_every_row_is_computed_once_by_any_number_of_threads(threads: int, rows: int) -> None:
    generator = np.random.default_rng(rows)
    backend = CpuBackend(threads=threads, exact=True)
    weight = random_weight(get_format("f32"), rows, 260, generator)
    x = generator.standard_normal((1, 260), dtype=np.float32)
    bias = generator.standard_normal(rows, dtype=np.float32)
    expected = x @ weight.decode().T + bias
    for _ in range(20):
        np.testing.assert_allclose(backend.linear(x, weight, bias), expected, atol=1e-3)


def _pinned(extra_threads: int, pin: str | None) -> tuple[int, int, int]:
    """(helpers, those bound to one core, cores that any may use), in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "FIRSTLIGHT_PIN_THREADS"}
    if pin is not None:
        environment["FIRSTLIGHT_PIN_THREADS"] = pin
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(extra_threads)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    helpers, bound, cores = map(int, done.stdout.split())
    return helpers, bound, cores


@pytest.mark.skipif(sys.platform != "linux", reason="threads are bound on Linux only")
def test_helpers_stay_on_cores_of_their_own() -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("this process may use one core only")
    assert _pinned(0, None) == (cores - 1, cores - 1, cores - 1)
    assert _pinned(0, "0") == (cores - 1, 0, cores)
    # Not a thread for each core: the system places them.
    assert _pinned(1, None) == (cores, 0, cores)
