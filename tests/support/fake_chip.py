"""A chip whose kernels take as long as a test says, by a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from firstlight.backends.base import Backend
from firstlight.backends.kernel import Kernel, Parameter
from firstlight.ops.contract import get_op

Cost = Callable[..., float]


class FakeClock:
    """Seconds that pass only when something is said to take some.

    Args:
        noise: relative standard deviation of everything that takes time.
        interruptions: probability that something takes ten times as long.
    """

    def __init__(self, noise: float = 0.0, interruptions: float = 0.0, seed: int = 0) -> None:
        self.now = 0.0
        self._noise, self._interruptions = noise, interruptions
        self._generator = np.random.default_rng(seed)

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        factor = 1 + abs(self._generator.normal(0, self._noise)) if self._noise else 1.0
        if self._interruptions and self._generator.random() < self._interruptions:
            factor *= 10
        self.now += seconds * factor


class FakeChip(Backend):
    """A host whose kernels are made of definitions and costs."""

    name = "fake"
    chip = "a chip"
    build = "build 1"

    def __init__(self, kernels: tuple[Kernel, ...]) -> None:
        super().__init__(kernels)
        self.evictions = 0

    def device_key(self) -> str:
        return f"fake: {self.chip}"

    def identity(self) -> str:
        return f"{self.chip}, {self.build}"

    def evict_caches(self) -> None:
        self.evictions += 1


def kernel(
    op: str,
    name: str,
    clock: FakeClock,
    cost: Cost,
    parameters: tuple[Parameter, ...] = (),
    result: Callable[..., Any] | None = None,
    **settings: Any,
) -> Kernel:
    """A kernel that is right, or whose result `result(right, **parameters)` makes of the right one.

    Args:
        cost: (**parameters) -> seconds.
    """
    definition = get_op(op).definition
    defaults = {parameter.name: parameter.default for parameter in parameters}

    def run(*arguments: Any, **given: Any) -> Any:
        values = {**defaults, **given}
        clock.take(cost(**values))
        right = definition(*arguments)
        return right if result is None else result(right, **values)

    return Kernel(op, name, run, parameters=parameters, **settings)
