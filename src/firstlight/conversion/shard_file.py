"""A safetensors file whose tensors are known before their bytes; it is named when it is whole.

The format is that of `checkpoint/safetensors.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from firstlight.checkpoint.safetensors import BITS
from firstlight.errors import FirstlightError
from firstlight.formats.base import Bytes

_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its name, type as safetensors call it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


class ShardFile:
    """An open file, its header written."""

    def __init__(self, file: BinaryIO, entries: tuple[TensorEntry, ...]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets, end = {}, 0
        # The widest types first, so that every tensor begins at a multiple of its values' size.
        for entry in sorted(entries, key=lambda each: -BITS[each.dtype]):
            offsets[entry.name] = end
            header[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [end, end + entry.nbytes],
            }
            end += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        self._file = file
        self._start = 8 + len(text)
        self._offsets: Mapping[str, int] = offsets
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(self._start + end)

    def write(self, name: str, position: int, data: Bytes | bytes) -> None:
        """Bytes of a tensor, from `position` on."""
        self._file.seek(self._start + self._offsets[name] + position)
        self._file.write(data if isinstance(data, bytes) else data.tobytes())


@contextmanager
def shard_file(path: Path, entries: tuple[TensorEntry, ...]) -> Iterator[ShardFile]:
    """A file to fill; it gets its name once the block ends without an error, and its bytes are on
    the disk.

    Raises:
        FirstlightError: the operating system refuses (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield ShardFile(file, entries)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def unwritable(path: Path, error: OSError) -> FirstlightError:
    """The error for a file that the system does not let us write."""
    return FirstlightError(
        path,
        f"cannot be written ({error.strerror or error})",
        "Make room there or allow writing; the same command then goes on where it stopped",
    )
