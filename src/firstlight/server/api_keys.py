"""Who may use the server: keys from a file."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.checkpoint.files import shown
from firstlight.errors import RequestError

_OPTIONS = ("requests", "tokens", "priority")
_REMEDY = "A line is KEY [NAME] [requests=PER_MINUTE] [tokens=PER_MINUTE] [priority=NUMBER]"
_SHORTEST = 8
_LARGEST = 1 << 53


@dataclass(frozen=True)
class Caller:
    """Somebody who may ask, and how much.

    Attributes:
        name: shown in logs; prefixes are shared between requests of one name only.
        digest: SHA-256 of the key. The key itself is not kept.
        requests_per_minute, tokens_per_minute: None: as many as the server can.
        priority: requests may ask for this at most.
    """

    name: str
    digest: bytes = b""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    priority: int = 0


def read_api_keys(
    path: Path, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> tuple[Caller, ...]:
    """The callers whose keys a file lists, one a line; "#" begins a comment.

    A line is a key, optionally a name, and optionally `requests=`, `tokens=` (a minute) and
    `priority=`. The limits given here hold where a line gives none.

    Raises:
        RequestError: the file cannot be read, or a line is wrong. The message holds no key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise RequestError(path, f"cannot be read ({error})", "Check the path") from None
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"{path}: other users of this machine can read these keys", stacklevel=2)
    callers = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            place = f"{path}, line {number}"
            callers.append(_caller(words, place, number, requests_per_minute, tokens_per_minute))
    if not callers:
        raise RequestError(path, "holds no key", _REMEDY)
    for what, values in (
        ("key", [caller.digest for caller in callers]),
        ("name", [caller.name for caller in callers]),
    ):
        if len(set(values)) < len(values):
            raise RequestError(path, f"holds a {what} twice", "Take one of them out")
    return tuple(callers)


def _caller(
    words: list[str], place: str, number: int, requests: int | None, tokens: int | None
) -> Caller:
    key, *rest = words
    if len(key) < _SHORTEST:
        raise RequestError(place, f"the key has fewer than {_SHORTEST} characters", _REMEDY)
    name = rest.pop(0) if rest and "=" not in rest[0] else f"key-{number}"
    given: dict[str, int] = {}
    for word in rest:
        option, _, value = word.partition("=")
        if option not in _OPTIONS or option in given:
            raise RequestError(place, f"has {shown(word)}", _REMEDY)
        given[option] = _number(value, place, -100 if option == "priority" else 1)
    return Caller(
        name,
        _digest(key),
        given.get("requests", requests),
        given.get("tokens", tokens),
        given.get("priority", 0),
    )


def _number(text: str, place: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= _LARGEST:
        raise RequestError(place, f"has {shown(text)} for a number", _REMEDY)
    return value


def find_caller(callers: Sequence[Caller], key: str) -> Caller | None:
    """Who has the key. Every key is compared, each in a time that does not depend on how much of
    it is right."""
    digest = _digest(key)
    found = None
    for caller in callers:
        if hmac.compare_digest(caller.digest, digest):
            found = caller
    return found


def bearer_key(header: str | None) -> str | None:
    """The key in an Authorization header (RFC 6750, section 2.1), None if there is none."""
    scheme, _, key = (header or "").strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
