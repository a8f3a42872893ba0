"""Bringing one file from a hub to disk: resumed where it broke off, and verified.

huggingface_hub's own download is not used for that: since version 1.18 it begins an interrupted
file from its start, and it compares sizes only.

Source: RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import BinaryIO

from firstlight.checkpoint.hub_cache import HubFile
from firstlight.checkpoint.hub_client import ATTEMPTS, HubClient, first_byte
from firstlight.checkpoint.hub_parallel import Stopped
from firstlight.errors import HubError
from firstlight.progress import Advance

_CHUNK_BYTES = 1 << 20


def download(
    client: HubClient,
    commit: str,
    file: HubFile,
    partial: Path,
    destination: Path,
    advance: Advance,
    stop: threading.Event,
    retry_seconds: float = 1.0,
) -> None:
    """Fetch a file's content to `destination`, going on from what `partial` already holds.

    The digest is computed as the bytes arrive, and only content that matches gets the final name.
    When the connection breaks for good, `partial` stays for the next call to go on from.

    Args:
        advance: told of the bytes at hand, those of `partial` included.
        stop: once set, the transfer ends with `Stopped`.
        retry_seconds: the wait before a second attempt; it doubles while nothing arrives.

    Raises:
        HubUnreachableError: the connection failed several times in a row.
        HubError: the hub refuses, or what it sends is not what it announced; then `partial` is
            removed.
        OSError: the content cannot be written.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        resumed = partial.exists() and partial.stat().st_size > 0
        try:
            with partial.open("a+b") as output:
                transfer = _Transfer(client, commit, file, output, advance, stop, retry_seconds)
                matches = transfer.run()
        except BaseException:
            if partial.stat().st_size == 0:
                partial.unlink()
            raise
        if matches:
            partial.replace(destination)
            return
        partial.unlink()
        advance(-transfer.position)
        # After a resumption the fault may be in what lay there, so the hub gets a second chance.
        if not resumed:
            raise HubError(
                f"{client.repository}/{file.name}",
                f"what {client.endpoint} sent does not match its own checksum {file.digest[:12]}; "
                "the file was removed",
                "Try again, or name another hub with --endpoint URL or HF_ENDPOINT",
            )


def matches_digest(
    path: Path, file: HubFile, advance: Advance, stop: threading.Event | None = None
) -> bool:
    """Whether a file on disk has the size and digest it should have. Reads all of it."""
    update, digest = file.hasher()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size = 0
    with path.open("rb", buffering=0) as source:
        while count := source.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            update(buffer[:count])
            size += count
            advance(count)
    return size == file.size and digest() == file.digest


class _Transfer:
    """The state of one download: how far it is, and the digest so far."""

    def __init__(
        self,
        client: HubClient,
        commit: str,
        file: HubFile,
        output: BinaryIO,
        advance: Advance,
        stop: threading.Event,
        retry_seconds: float,
    ) -> None:
        self._client, self._commit, self._file = client, commit, file
        self._output, self._advance, self._stop = output, advance, stop
        self._retry_seconds = retry_seconds
        self._subject = f"{client.repository}/{file.name}"
        self._update, self._digest = file.hasher()
        self.position = 0

    def run(self) -> bool:
        """Bring `output` to its full size; whether the content is the announced one."""
        self._read_beginning()
        failures = 0
        while self.position < self._file.size:
            before = self.position
            try:
                problem = self._attempt()
            except _TooLongError:
                return False
            if self.position == self._file.size:
                break
            failures = 0 if self.position > before else failures + 1
            if failures >= ATTEMPTS:
                raise problem
            if self._stop.wait(self._retry_seconds * 2**failures):
                raise Stopped
        return self._digest() == self._file.digest

    def _read_beginning(self) -> None:
        if self._output.seek(0, 2) > self._file.size:
            self._output.truncate(0)
        self._output.seek(0)
        while chunk := self._output.read(_CHUNK_BYTES):
            self._count(chunk)

    def _attempt(self) -> HubError:
        """Receive until the file is complete or the connection ends; what ended it, if early."""
        client = self._client
        try:
            with client.content(self._commit, self._file.name, self.position) as answer:
                if (refusal := client.passing_refusal(self._subject, answer)) is not None:
                    return refusal
                if first_byte(answer) != self.position:
                    self._restart()
                if first_byte(answer) == self.position:
                    # As they arrive: a fixed size would hold bytes back, to be lost at a break.
                    for chunk in answer.iter_bytes():
                        if self.position + len(chunk) > self._file.size:
                            raise _TooLongError
                        self._output.write(chunk)
                        self._count(chunk)
        except client.transport_errors as error:
            return client.unreachable(self._subject, error)
        return HubError(
            self._subject,
            f"{client.endpoint} ends the transfer {self._file.size - self.position} bytes early",
            "Start again: what has arrived is kept",
        )

    def _count(self, chunk: bytes) -> None:
        if self._stop.is_set():
            raise Stopped
        self._update(chunk)
        self.position += len(chunk)
        self._advance(len(chunk))

    def _restart(self) -> None:
        """Begin anew, for a server that does not answer with the range that was asked for."""
        self._output.truncate(0)
        self._advance(-self.position)
        self.position = 0
        self._update, self._digest = self._file.hasher()


class _TooLongError(Exception):
    """The hub sends more bytes than it announced."""
