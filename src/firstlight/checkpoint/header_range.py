"""The header of one weights file on a hub, by requests for parts of the file.

The result is a file of the same size on disk, with the header at its start and a hole after it, so
that the readers of headers check its numbers against the size as they do for a whole file.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import BinaryIO

from firstlight.checkpoint import gguf, safetensors
from firstlight.checkpoint.gguf_values import MOST_TEXT, Cursor
from firstlight.checkpoint.hub_cache import HubFile
from firstlight.checkpoint.hub_range import read_range
from firstlight.checkpoint.hub_snapshot import SnapshotDownload
from firstlight.checkpoint.mapped_file import MappedFile
from firstlight.errors import CheckpointError, HubError

_FIRST_BYTES = 64 << 10
"""Of safetensors: a shard's whole header, usually, in one request."""

_FIRST_GGUF_BYTES = 1 << 20
"""A vocabulary and its merges have some megabytes; every further request doubles what is here."""

_MOST_GGUF_BYTES = 2 * MOST_TEXT
_MAGIC = int.from_bytes(gguf.MAGIC, "little")


class HeaderRange:
    """The part of a weights file that is its header.

    Args:
        download: of the repository.
        file: the weights file.
        stop: once set, `write` ends with `hub_parallel.Stopped`.
    """

    def __init__(self, download: SnapshotDownload, file: HubFile, stop: threading.Event) -> None:
        self._download, self._file, self._stop = download, file, stop
        self._subject = f"{download.client.repository}/{file.name}"

    def write(self, path: Path) -> None:
        """Write the header to `path`, followed by a hole up to the file's size.

        Raises:
            HubError: the hub cannot be reached or refuses, or the header is damaged.
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as output:
            output.truncate(self._file.size)  # a hole takes no room on disk
            try:
                if path.name.lower().endswith(".gguf"):
                    self._write_gguf(path, output)
                    gguf.read_header(path)
                else:
                    self._write_safetensors(output)
                    safetensors.read_header(path)
            except CheckpointError as error:
                raise HubError(
                    self._subject,
                    error.reason,
                    "Tell the repository's owner, or choose another revision with @REVISION",
                ) from error

    def _write_safetensors(self, output: BinaryIO) -> None:
        here = self._add(output, 0, _FIRST_BYTES)
        output.seek(0)
        end = 8 + int.from_bytes(output.read(8), "little")
        # Any other length is refused by the reader.
        if here < end <= min(self._file.size, 8 + safetensors.LARGEST_HEADER):
            self._add(output, here, end)

    def _write_gguf(self, path: Path, output: BinaryIO) -> None:
        here, end = 0, _FIRST_GGUF_BYTES
        while True:
            here = self._add(output, here, end)
            if here == self._file.size or _is_complete(path, self._file.size, here):
                return
            if here >= _MOST_GGUF_BYTES:
                raise HubError(
                    self._subject,
                    f"its header goes on after {_MOST_GGUF_BYTES >> 20} MiB",
                    "Choose another file of this model",
                )
            end = 2 * here

    def _add(self, output: BinaryIO, start: int, end: int) -> int:
        """Fetch start:end, or up to the file's end; where the bytes at hand end then."""
        end = min(end, self._file.size)
        download = self._download
        content = read_range(
            download.client,
            download.commit,
            self._file,
            start,
            end,
            self._stop,
            download.retry_seconds,
        )
        output.seek(start)
        output.write(content)
        output.flush()
        return end


def _is_complete(path: Path, size: int, here: int) -> bool:
    """Whether the first `here` bytes of a GGUF file hold its whole header, or show its fault."""
    cursor = Cursor(path, MappedFile(path, size).bytes().data)
    with contextlib.suppress(CheckpointError):  # a fault, or misread in the hole after `here`
        _walk(cursor, here)
    return cursor.position <= here


def _walk(cursor: Cursor, here: int) -> None:
    """Move over a GGUF header, but not far beyond byte `here`.

    See `gguf` for the layout, and `gguf.read_header` for the checks.
    """
    start = cursor.number("<I", "the magic"), cursor.number("<I", "the version")
    if start not in ((_MAGIC, 2), (_MAGIC, 3)):
        return
    tensors = cursor.number("<Q", "the number of tensors")
    keys = cursor.number("<Q", "the number of keys")
    if keys > gguf.MOST_KEYS or tensors > gguf.MOST_TENSORS:
        return
    for _ in range(keys):
        cursor.string("a key")
        cursor.value(cursor.number("<I", "the type of a value"), "a value")
        if cursor.position > here:
            return
    for _ in range(tensors):
        cursor.string("the name of a tensor")
        axes = cursor.number("<I", "a number of axes")
        for _ in range(min(axes, gguf.MOST_AXES)):
            cursor.number("<Q", "a shape")
        cursor.number("<I", "a type")
        cursor.number("<Q", "an offset")
        if cursor.position > here:
            return
