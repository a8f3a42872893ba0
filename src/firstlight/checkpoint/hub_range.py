"""A part of one file from a hub, for what only its header is needed of."""

from __future__ import annotations

import threading

from firstlight.checkpoint.hub_cache import HubFile
from firstlight.checkpoint.hub_client import ATTEMPTS, ELSEWHERE, HubClient, first_byte
from firstlight.checkpoint.hub_parallel import Stopped
from firstlight.errors import HubError


def read_range(
    client: HubClient,
    commit: str,
    file: HubFile,
    start: int,
    end: int,
    stop: threading.Event,
    retry_seconds: float = 1.0,
) -> bytes:
    """Bytes start:end of a file. A part has no digest, so it is what the hub says, unverified.

    Args:
        end: at most the file's size.
        stop: once set, the transfer ends with `Stopped`.
        retry_seconds: the wait before a second attempt; it doubles while nothing arrives.

    Raises:
        HubUnreachableError: the connection failed several times in a row.
        HubError: the hub refuses, or does not send this range.
    """
    subject = f"{client.repository}/{file.name}"
    content = bytearray()
    failures = 0
    while start + len(content) < end:
        before = len(content)
        try:
            problem = _read_more(client, commit, file, start, end, content, stop)
        except client.transport_errors as error:
            problem = client.unreachable(subject, error)
        failures = 0 if len(content) > before else failures + 1
        if failures >= ATTEMPTS:
            raise problem
        if start + len(content) < end and stop.wait(retry_seconds * 2**failures):
            raise Stopped
    return bytes(content)


def _read_more(
    client: HubClient,
    commit: str,
    file: HubFile,
    start: int,
    end: int,
    content: bytearray,
    stop: threading.Event,
) -> HubError:
    """Append to `content`, which begins at `start`; what ended it, if before `end`."""
    subject = f"{client.repository}/{file.name}"
    begin = start + len(content)
    with client.content(commit, file.name, begin, end) as answer:
        if (refusal := client.passing_refusal(subject, answer)) is not None:
            return refusal
        # A server that does not know ranges begins with the file's first byte.
        position = first_byte(answer)
        if 0 <= position <= begin:
            for chunk in answer.iter_bytes():
                if stop.is_set():
                    raise Stopped
                content += chunk[max(0, begin - position) : max(0, end - position)]
                position += len(chunk)
                if position >= end:
                    break
    return HubError(
        subject,
        f"{client.endpoint} does not send bytes {begin:,} to {end:,} of it",
        f"Try again later, or {ELSEWHERE}",
    )
