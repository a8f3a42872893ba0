"""What headers say: about one tensor, and about one file of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.errors import CheckpointError

MOST_AXES = 32
"""NumPy 1.x stops here; no published tensor comes near."""

MOST_VALUES = 1 << 56
"""Of a shape, its empty axes counted as one. NumPy multiplies the other axes and the bytes of an
item even where the tensor has no values, and must stay within 63 bits."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, known from a header alone.

    Attributes:
        name: as the checkpoint spells it.
        format: name of the storage format, lower case ("bf16", "q4_k"). A type that firstlight
            does not know is kept by name; only asking for the weight refuses it.
        shape: of the values, outermost axis first.
        nbytes: bytes in the file. For a type of unknown block size: up to the next tensor.
        file: the file that holds it.
        offset: of its first byte in that file.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int

    @property
    def values(self) -> int:
        """How many values it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class WeightsFile:
    """The header of one file.

    Attributes:
        mapping: the file; mapped when its first tensor is asked for.
        tensors: by name, in the header's order.
        metadata: what else the header says (GGUF).
    """

    mapping: MappedFile
    tensors: dict[str, TensorInfo]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.mapping.path


def merge_tensors(files: Iterable[WeightsFile]) -> dict[str, TensorInfo]:
    """The tensors of all files; CheckpointError if two files hold one of the same name."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        twice = tensors.keys() & file.tensors.keys()
        if twice:
            name = min(twice)
            raise CheckpointError(
                file.path,
                f"holds tensor {shown(name)}, and so does {tensors[name].file.name}",
                "Download all files of the model again, from one revision",
            )
        tensors.update(file.tensors)
    return tensors
