"""Compiles what a launch would run, for chips that are not there.

Run as a program: it reads no input, compiles a few launches for each target, and writes what each
kernel needs as JSON lines.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface

from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.paging import PagedRows

# What a program can share on each, in bytes.
TARGETS = {
    "cuda": (GPUTarget("cuda", 90, 32), 232448),
    "hip": (GPUTarget("hip", "gfx942", 64), 65536),
}


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget, shared: int) -> None:
        self.target, self.shared = target, shared
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}


def compile_instead(name: str) -> None:
    """Have every launch from now on compile its kernel for a target, and run nothing."""
    target, shared = TARGETS[name]
    driver.set_active(_Driver(target, shared))

    def take_grid(kernel: Any, grid: tuple[int, ...]) -> Any:
        def compile_only(*arguments: Any, **options: Any) -> None:
            made = kernel.run(*arguments, grid=grid, warmup=True, **options)
            report = {"target": name, "kernel": kernel.__name__, "shared": made.metadata.shared}
            print(json.dumps({**report, "allowed": shared, "stages": list(made.asm)}))

        return compile_only

    KernelInterface.__getitem__ = take_grid


def _rows() -> PagedRows:
    """A sequence that decodes and one that has just begun."""
    starts, positions = np.array([0, 1, 20], np.int32), np.array([4000, *range(19)], np.int32)
    return PagedRows(starts, positions, np.arange(126, dtype=np.int32).reshape(2, 63), 64)


def compile_attention() -> None:
    from firstlight.backends.torch.triton.attention import attention_kernels

    kernels = {
        (kernel.op, kernel.name): kernel
        for kernel in attention_kernels(Transfer(torch.device("cpu")), exact=False)
    }
    rows, narrow = _rows(), torch.bfloat16
    queries = torch.zeros(20, 8, 80)
    keys = torch.zeros(126, 64, 2, 80, dtype=narrow)
    kernels["attention", "paged_bfloat16"].run(queries, keys, keys, rows, 0.1, 512, 50.0)
    sinks = torch.zeros(8)
    kernels["attention_with_sinks", "paged"].run(queries, keys, keys, rows, 0.1, None, sinks)
    queries, entries = torch.zeros(20, 16, 576), torch.zeros(126, 64, 576, dtype=narrow)
    kernels["latent_attention", "paged_bfloat16"].run(queries, entries, 512, rows, 0.1)


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret
    compile_instead(sys.argv[1])
    compile_attention()
