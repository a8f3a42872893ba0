"""Bounds on what one client can make the server hold, or wait for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        body_bytes: longest body of a request.
        connections: open at once; at the bound, the one that has waited longest for a request is
            closed in favour of a new one.
        header_seconds: for a request's line and headers to come whole.
        body_seconds: for its body.
        keep_alive_seconds: that a connection is kept open without a request.
        stall_seconds: for a client that takes nothing of its answer.
        comment_seconds: without a token, after which a stream gets a comment, so that nothing on
            the way takes it for dead.
        linger_seconds, linger_bytes: of a refused body that are read and dropped, so that the
            client comes to read the refusal.
        sequences: of one request, over all its prompts.
    """

    body_bytes: int = 16 << 20
    connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: float = 60.0
    stall_seconds: float = 60.0
    comment_seconds: float = 10.0
    linger_seconds: float = 2.0
    linger_bytes: int = 128 << 20
    sequences: int = 1024
