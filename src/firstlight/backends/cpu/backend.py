"""The cpu backend: kernels in C++ (native/), for the instruction sets that this processor has."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Backend, Choice, Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.attention import AttentionKernels
from firstlight.backends.cpu.blocks import BlockKernels
from firstlight.backends.cpu.elementwise import ElementwiseKernels
from firstlight.backends.cpu.entries import EntryKernels
from firstlight.backends.cpu.latent import LatentKernels
from firstlight.backends.cpu.latent_block import LatentBlockKernels
from firstlight.backends.cpu.packed import (
    LAYOUT,
    PANEL_ROWS,
    PackedMatrix,
    pack,
    pack_into,
    packed_bytes,
)
from firstlight.backends.cpu.products import ProductKernels
from firstlight.backends.cpu.tuned_attention import TunedAttention
from firstlight.backends.cpu.tuned_matrices import TunedMatrices
from firstlight.errors import DeviceError
from firstlight.formats.base import Bytes, Format, Weight
from firstlight.host.ceilings import Ceilings, measure_ceilings
from firstlight.host.huge_pages import zeros
from firstlight.host.processor import usable_cores
from firstlight.ops.choose_tokens import (
    choose_tokens,
    likeliest_tokens,
    token_log_probabilities,
)
from firstlight.ops.interface import PackedWeight
from firstlight.ops.shape import Shape

LEVEL_VARIABLE = "FIRSTLIGHT_CPU_LEVEL"


# Logits are on the host already, so that there is nothing to gain but NumPy's own speed.
_ON_HOST = tuple(
    Kernel(op.__name__, "host", op)
    for op in (choose_tokens, likeliest_tokens, token_log_probabilities)
)


def available_levels() -> tuple[str, ...]:
    """The instruction levels that were built and that this processor has, the highest last."""
    return tuple(_native.levels())


def _chosen_level(asked: str | None) -> str:
    levels = available_levels()
    level = asked or os.environ.get(LEVEL_VARIABLE) or levels[-1]
    if level not in levels:
        raise DeviceError(
            f"instruction level {level!r}",
            "this processor lacks it, or firstlight was built without it",
            f"Choose one of {', '.join(levels)}, or unset {LEVEL_VARIABLE}",
        )
    return level


class CpuBackend(Backend):
    """The host's processor. Tensors are NumPy arrays.

    Quantised weights are laid out anew for the products, which round their activations to 16 bits
    and 8 (ops/rounding.py: mixed16); others are used where the file lies.

    A row's result is the same bit for bit whatever else is in the batch and however many threads
    there are. Ops may be called from several threads; they take turns. After a fork the child
    starts threads of its own.

    Args:
        level: instruction level, one of available_levels(); the environment variable
            FIRSTLIGHT_CPU_LEVEL if None, else the highest.
        threads: how many threads share an op; one for each usable core if None. Where they are as
            many as the cores that the process may run on, those besides the caller stay on a core
            each (Linux), unless the environment variable FIRSTLIGHT_PIN_THREADS is 0.
        exact: round no activations; all weights are used where the file lies.

    Raises:
        DeviceError: this processor lacks the level.
    """

    name = "cpu"

    def __init__(
        self, level: str | None = None, threads: int | None = None, exact: bool = False
    ) -> None:
        self.level = _chosen_level(level)
        self.threads = threads or usable_cores()
        self.exact = exact
        self.native = _native.Kernels(self.level, self.threads, exact)
        products = ProductKernels(self.native, packed=not exact, exact=exact)
        attention = AttentionKernels(self.native, exact)
        elementwise = ElementwiseKernels(self.native)
        self._attention = TunedAttention()
        blocks = BlockKernels(self.native, products.rounding, self._attention)
        latent = LatentKernels(self.native, exact)
        entries = EntryKernels(self.native, exact)
        latent_blocks = LatentBlockKernels(self.native, products.rounding)
        super().__init__(
            (
                *products.all(),
                *attention.all(),
                *elementwise.all(),
                *latent.all(),
                *entries.all(),
                *blocks.all(),
                *latent_blocks.all(),
                *_ON_HOST,
            )
        )
        self._matrices = TunedMatrices()
        self._linear_choices: dict[Shape, Choice] = {}

    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> NDArray[Any]:
        storage = {"float32": np.float32, "bfloat16": np.uint16}[dtype]
        return zeros((pages, page_tokens, *entry), storage)

    def pack(self, weight: Weight) -> PackedWeight:
        packed = (None if self.exact else pack(weight, self.native)) or weight
        self._matrices.remember(packed)
        return packed

    def packed_layout(self) -> str | None:
        return None if self.exact else f"{self.name}, {LAYOUT}"

    def packed_bytes(self, format: Format, rows: int, columns: int) -> int | None:
        return None if self.exact else packed_bytes(format, rows, columns)

    def packed_row_group(self, format: Format) -> int | None:
        return PANEL_ROWS

    def pack_into(self, weight: Weight, out: Bytes) -> None:
        pack_into(weight, out, self.native)

    def packed_from(
        self, format: Format, shape: tuple[int, ...], data: Bytes, name: str
    ) -> PackedWeight:
        return PackedMatrix(format, shape, data, name)

    def unpack(self, packed: PackedWeight) -> Weight:
        return packed.unpack() if isinstance(packed, PackedMatrix) else super().unpack(packed)

    def is_packed(self, argument: Any) -> bool:
        return isinstance(argument, (Weight, PackedMatrix))

    def apply_tuning(self, op: str, shape: Shape, choice: Choice | None) -> None:
        """Of products the weights' handles are told, and of attention what fused blocks ask, so
        that those know it too.

        Which kernel serves a weight is not theirs to say; nor is it the tuner's, since the kernels
        that accept the same weight differ in how they round.
        """
        ready = None if choice is None else self.ready(op, choice)
        if op == "linear" and choice is not None and ready is not None and ready.values:
            super().apply_tuning(op, shape, None)
            self._linear_choices[shape] = choice
            self._matrices.tune(shape, ready.values)
            return
        if op == "linear":
            self._linear_choices.pop(shape, None)
            self._matrices.tune(shape, None)
        if op == "attention":
            self._attention.tune(shape, None if ready is None else ready.values)
        super().apply_tuning(op, shape, choice)

    def tuning(self) -> dict[tuple[str, Shape], Choice]:
        linear = {("linear", shape): choice for shape, choice in self._linear_choices.items()}
        return {**super().tuning(), **linear}

    def device_key(self) -> str:
        return f"{self.name}: {self.device_name()}, {self.threads} threads, {self.level}"

    def measure_ceilings(self) -> Ceilings:
        ways: list[str] = []

        def bandwidth(size: int, _: int) -> float:
            bytes_per_second, way = self.native.measure_bandwidth(size)
            ways.append(way)
            return bytes_per_second

        ceilings = measure_ceilings(
            self.device_name(),
            bandwidth=bandwidth,
            matrix={
                dtype: partial(self.native.measure_multiply_add, dtype)
                for dtype in self.native.multiply_add_types()
            },
            threads=self.threads,
        )
        how = f"{ceilings.how}; C++ at level {self.level}, memory best read by {ways[-1]}"
        return replace(ceilings, how=how)

    def fast_formats(self) -> frozenset[str]:
        return frozenset(_native.formats())

    def identity(self) -> str:
        built = Path(_native.__file__).stat()
        name = _native.processor_name() or platform.machine()
        return f"{name}, {self.level}, build {built.st_size}-{built.st_mtime_ns}"
