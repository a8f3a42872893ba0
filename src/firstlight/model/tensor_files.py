"""What the model needs of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from firstlight.formats.base import Format, Weight


class TensorHeader(Protocol):
    """What the headers say of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str: ...


class TensorFiles(Protocol):
    """The part of a checkpoint that weights come from."""

    @property
    def location(self) -> object: ...

    @property
    def tensors(self) -> Mapping[str, TensorHeader]: ...

    def format_of(self, name: str) -> Format:
        """What a tensor's values are given in."""

    def weight(self, name: str) -> Weight: ...

    def rows(self, name: str, start: int, stop: int) -> Weight:
        """Rows start:stop of a tensor, all axes but the last counted as rows."""

    def integers(self, name: str) -> NDArray[Any]:
        """A tensor of whole numbers, in its own type and shape."""

    def release(self, name: str, start: int, stop: int) -> None:
        """Rows start:stop of a tensor are not needed for now."""
