"""What a case of the conformance check is."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One set of arguments for one op.

    Attributes:
        op: the op's name in the contract.
        name: what is particular about it; unique within the op.
        make: draws the arguments as the op's definition takes them, except that pages of a
            stream are wrapped in `StreamArgument`.
        quick: belongs to the short selection that decides whether a kernel may serve on a device.
    """

    op: str
    name: str
    make: Callable[[np.random.Generator], Arguments]
    quick: bool = False

    def arguments(self) -> Arguments:
        """The arguments, equal at every call and in every process."""
        return self.make(np.random.default_rng(zlib.crc32(f"{self.op} {self.name}".encode())))


@dataclass(frozen=True, eq=False)
class StreamArgument:
    """Pages of a stream: a backend keeps them as `new_stream` says, not as an ordinary tensor.

    Attributes:
        pages: [pages, page_tokens, *entry], float32, or uint16 for bfloat16.
    """

    pages: NDArray[Any]

    @property
    def dtype_name(self) -> str:
        return "bfloat16" if self.pages.dtype == np.uint16 else "float32"


def normal(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Normally distributed float32 values of that shape."""
    return generator.standard_normal(shape, dtype=np.float32)
