"""What an unfinished conversion knows of itself: which command it belongs to, what is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.conversion.outputs import AnyOutput
from firstlight.conversion.schemes import Target
from firstlight.conversion.square import Square
from firstlight.errors import FirstlightError
from firstlight.formats.registry import ENCODING
from firstlight.host.cache import write_atomically

NAME = "conversion.json"
_LAYOUT = 1


@dataclass
class Record:
    """The file beside the shards.

    Attributes:
        key: of source, target and sizes; another command has another.
        shards: name of a finished shard -> sums of each matrix in it.
    """

    folder: Path
    key: str
    shards: dict[str, dict[str, Square]] = field(default_factory=dict)

    def finished(self, name: str, size: int) -> bool:
        """Whether a shard is there, whole."""
        path = self.folder / name
        return name in self.shards and path.is_file() and path.stat().st_size >= size

    def add(self, name: str, squares: Mapping[str, Square]) -> None:
        self.shards[name] = dict(squares)
        self.write()

    def write(self) -> None:
        shards = {
            name: {key: [each.values, each.errors] for key, each in squares.items()}
            for name, squares in self.shards.items()
        }
        text = json.dumps({"layout": _LAYOUT, "key": self.key, "shards": shards})
        write_atomically(self.folder / NAME, lambda file: file.write(text.encode()))


def open_record(folder: Path, key: str) -> Record:
    """The record of a folder that is there or is made.

    Raises:
        FirstlightError: the folder holds something else, or cannot be made.
    """
    path = folder / NAME
    record = Record(folder, key)
    if not folder.exists():
        folder.mkdir(parents=True)
        record.write()
        return record
    try:
        content: Any = json.loads(path.read_bytes())
        shards = {
            str(name): {str(key): Square(float(a), float(b)) for key, (a, b) in squares.items()}
            for name, squares in content["shards"].items()
        }
        same = content["layout"] == _LAYOUT and content["key"] == key
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _other(folder, "holds no conversion that could go on") from None
    if not same:
        raise _other(
            folder, "holds an unfinished conversion of another model, format or shard size"
        )
    record.shards = shards
    return record


def _other(folder: Path, reason: str) -> FirstlightError:
    return FirstlightError(
        folder, reason, "Delete that folder, or give the command that was begun there"
    )


def key_of(
    checkpoint: Checkpoint, target: Target, outputs: tuple[AnyOutput, ...], shard_bytes: int
) -> str:
    """All that decides what is written."""
    files = []
    for path in checkpoint.files:
        status = path.stat()
        files.append((path.name, status.st_size, status.st_mtime_ns))
    tensors = [(each.name, each.shape, None if each.scheme is None else each.scheme.name)
               for each in outputs]  # fmt: skip
    text = json.dumps([target.name, ENCODING, shard_bytes, files, tensors, checkpoint.reading])
    return hashlib.sha256(text.encode()).hexdigest()
