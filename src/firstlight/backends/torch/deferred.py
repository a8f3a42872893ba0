"""Arrays of the host that are not known yet while a step is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch


class NotReplayable(Exception):
    """A step asks for something that differs from step to step where only the device may look."""


class Deferred:
    """Stands for an array of the host, and is a tensor of the device that every replay fills anew.

    Code that runs on the host may ask for its shape, cast it, divide it by a number and upload it.
    Whatever would look at its values cannot be replayed, and says so.

    Attributes:
        tensor: on the device, of the array's shape.
        dtype: of the array.
    """

    def __init__(self, tensor: torch.Tensor, dtype: np.dtype[Any]) -> None:
        self.tensor = tensor
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def size(self) -> int:
        return self.tensor.numel()

    @property
    def ndim(self) -> int:
        return self.tensor.dim()

    def __len__(self) -> int:
        return len(self.tensor)

    def astype(self, dtype: Any) -> Deferred:
        wanted = np.dtype(dtype)
        return Deferred(self.tensor.to(getattr(torch, wanted.name)), wanted)

    def __floordiv__(self, number: object) -> Deferred:
        return self._divided(number, torch.floor_divide)

    def __mod__(self, number: object) -> Deferred:
        return self._divided(number, torch.remainder)

    def _divided(self, number: object, divide: Callable[..., torch.Tensor]) -> Deferred:
        if not isinstance(number, int):
            _refuse()
        return Deferred(divide(self.tensor, number), self.dtype)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked for by copy, NumPy and others, which go on without
            raise AttributeError(name)
        _refuse()


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotReplayable("a kernel looks at positions, pages or token ids on the host")


for _name in (
    "array", "array_ufunc", "getitem", "iter", "int", "index", "float", "bool", "add", "radd",
    "sub", "rsub", "mul", "rmul", "truediv", "neg", "lt", "le", "gt", "ge",
    "eq", "ne",
):  # fmt: skip
    setattr(Deferred, f"__{_name}__", _refuse)
Deferred.__hash__ = object.__hash__  # type: ignore[method-assign]
