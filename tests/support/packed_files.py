"""Small packed files, and what they must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firstlight.formats.base import Bytes
from firstlight.packed.file import PackedFile, damaged_tensors
from firstlight.packed.layout import PackedKey, PackedTensor
from firstlight.packed.store import PackedStore

KEY = PackedKey("ab" * 32, "", "layout 1")
TENSORS = tuple(
    PackedTensor(f"tensor {number}", "q8_0", True, (size // 8, 8), size)
    for number, size in enumerate((8, 4096, 10_000, 0, 33_000))
)


def key(number: int) -> PackedKey:
    """A key of its own for each number."""
    return PackedKey(f"{number:064x}", "", "layout 1")


def expected(tensor: PackedTensor) -> Bytes:
    """A tensor's bytes, other ones for every name."""
    seed = int.from_bytes(tensor.name.encode()[-4:], "little")
    return np.random.default_rng(seed).integers(0, 256, tensor.nbytes, np.uint8)


def fill(tensor: PackedTensor, out: Bytes) -> None:
    """Write what `expected` gives."""
    out[:] = expected(tensor)


def refuse_to_fill(tensor: PackedTensor, out: Bytes) -> None:
    """For a file that must be there already."""
    raise AssertionError(f"packed again: {tensor.name}")


def small_store(directory: Path, limit: int = 1 << 30, patience: float = 20.0) -> PackedStore:
    """A store that takes any disk for large enough."""
    return PackedStore(directory, limit, spare=0, patience=patience)


def get(store: PackedStore, number: int | None = None) -> PackedFile | None:
    """The store's file of TENSORS, under KEY or the numbered key."""
    return store.get(KEY if number is None else key(number), f"model {number}", TENSORS, fill)


def assert_whole(packed: PackedFile | None) -> None:
    assert packed is not None
    for tensor in TENSORS:
        assert np.array_equal(packed.data(tensor.name), expected(tensor))
    assert damaged_tensors(packed) == []


def names(directory: Path) -> list[str]:
    """What is in the directory, but for the file that processes take turns with."""
    if not directory.exists():
        return []
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")
