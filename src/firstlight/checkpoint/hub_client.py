"""Talking to a hub over HTTP: what it lists, what it refuses, and the bytes of a file.

Through huggingface_hub's connection, so that its proxies, certificates and offline switch hold.
Its own request headers are not used: making them can send a request to the default hub even
where another endpoint was asked for.

Sources: Hugging Face, "Hub API Endpoints" (GET /api/models/ID/revision/REVISION with blobs=true);
RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from firstlight.checkpoint.hub_cache import HubFile, is_commit, is_digest
from firstlight.checkpoint.hub_selection import is_safe_name
from firstlight.errors import HubError

DEFAULT_ENDPOINT = "https://huggingface.co"
ELSEWHERE = (
    "name a hub that can be reached with --endpoint URL or HF_ENDPOINT, or fetch the files by "
    "other means and give their directory instead of the id"
)

ATTEMPTS = 5
"""Of a connection on which nothing arrives, until it is given up."""

_TIMEOUT_SECONDS = 10.0


class HubUnreachableError(HubError):
    """No answer from the hub: what is in the local cache may still serve."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: the full commit id.
        files: name -> file, or None where the hub does not give its size and digest.
    """

    commit: str
    files: dict[str, HubFile | None]


class HubClient:
    """A connection to one hub for one repository.

    Args:
        endpoint: the hub's address; HF_ENDPOINT or the public hub if None.
        repository: "ORG/NAME".
        revision: branch, tag or commit.

    Attributes:
        transport_errors: what the connection raises when it fails.

    Raises:
        HubError: the endpoint is not an address, or the user's token cannot be read.
    """

    def __init__(self, endpoint: str | None, repository: str, revision: str) -> None:
        from huggingface_hub import constants, get_session

        chosen = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        if not chosen.startswith(("http://", "https://")):
            raise HubError(
                chosen,
                "is not the address of a hub",
                f"Give an endpoint such as {DEFAULT_ENDPOINT}",
            )
        self.endpoint = chosen.rstrip("/")
        self.repository = repository
        self.revision = revision
        self.offline = bool(constants.HF_HUB_OFFLINE)
        self._session: Any = get_session()
        self.transport_errors = _transport_errors(self._session)
        # "identity": a compressed answer has no byte positions to go on from.
        self._headers = {"user-agent": f"firstlight/{_version()}", "accept-encoding": "identity"}
        if token := _token():
            self._headers["authorization"] = f"Bearer {token}"

    def listing(self) -> Listing:
        """The repository's commit and files.

        Raises:
            HubUnreachableError: no answer, or offline mode.
            HubError: the hub refuses, or answers nonsense.
        """
        subject = f"{self.repository}@{self.revision}"
        if self.offline:
            raise HubUnreachableError(
                subject,
                "is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it",
                "Unset HF_HUB_OFFLINE, or give a local directory or .gguf file",
            )
        path = f"api/models/{self.repository}/revision/{quote(self.revision, safe='')}"
        try:
            answer = self._session.get(
                f"{self.endpoint}/{path}",
                params={"blobs": "true"},
                headers=self._headers,
                timeout=_TIMEOUT_SECONDS,
            )
        except self.transport_errors as error:
            raise self.unreachable(subject, error) from error
        if answer.status_code != 200:
            raise self.refusal(subject, answer)
        try:
            return _parse_listing(answer.json())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise HubError(
                self.endpoint,
                "does not answer as a hub should (a sign-in page of the network, perhaps)",
                f"Check the endpoint and the network, or {ELSEWHERE}",
            ) from error

    @contextmanager
    def content(self, commit: str, name: str, start: int, end: int | None = None) -> Iterator[Any]:
        """The answer to a request for a file's bytes start:end, its body not yet read.

        Its status can be any: 206 begins at `start`, 200 at the file's beginning.
        """
        url = f"{self.endpoint}/{self.repository}/resolve/{commit}/{quote(name)}"
        headers = dict(self._headers)
        if start or end is not None:
            headers["range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._session.stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True
        ) as answer:
            yield answer

    def unreachable(self, subject: str, error: Exception) -> HubUnreachableError:
        """The error for a connection that failed."""
        return HubUnreachableError(
            subject,
            f"{self.endpoint} cannot be reached ({str(error) or type(error).__name__})",
            f"Check the network, or {ELSEWHERE}",
        )

    def passing_refusal(self, subject: str, answer: Any) -> HubError | None:
        """The error of a refusal that may pass, None where there is content; raises any other."""
        if answer.status_code in (200, 206):
            return None
        refusal = self.refusal(subject, answer)
        if answer.status_code in (416, 429) or answer.status_code >= 500:
            return refusal
        raise refusal

    def refusal(self, subject: str, answer: Any) -> HubError:
        """The error for an answer that is not what was asked for.

        The hub says in the header X-Error-Code which of several reasons a status has.
        """
        status, code = answer.status_code, answer.headers.get("x-error-code", "")
        page = f"{self.endpoint}/{self.repository}"
        if code == "GatedRepo" or status == 403:
            return HubError(
                subject,
                f"{self.endpoint} gives it only to people whom its owner has admitted",
                f"Accept the conditions at {page}, then set HF_TOKEN to a token of that account "
                "or run `hf auth login`",
            )
        if code == "RevisionNotFound":
            return HubError(
                subject,
                f"the repository has no revision {self.revision!r}",
                f"Choose a branch, tag or commit listed at {page}/tree/main, or leave out "
                f"@{self.revision}",
            )
        if code == "EntryNotFound":
            return HubError(
                subject,
                "the hub lists this file but does not have it",
                "Try again later, or choose another revision with @REVISION",
            )
        if status in (401, 404):
            return HubError(
                subject,
                f"{self.endpoint} has no such repository, or shows it only to its members",
                "Check the spelling of ORG/NAME; for a private repository set HF_TOKEN or run "
                "`hf auth login`; a directory on this machine is given as its path",
            )
        if status == 429:
            return HubError(
                subject,
                f"{self.endpoint} asks for fewer requests (HTTP 429)",
                "Wait some minutes and start again: what has arrived is kept",
            )
        kind = HubUnreachableError if status >= 500 else HubError
        return kind(
            subject,
            f"{self.endpoint} answers HTTP {status} {answer.reason_phrase}",
            f"Try again later, or {ELSEWHERE}",
        )


def _parse_listing(content: Any) -> Listing:
    """The hub's JSON answer, believing nothing in it; raises what a wrong shape happens to."""
    commit = content["sha"]
    if not is_commit(commit):
        raise ValueError("no commit id")
    files: dict[str, HubFile | None] = {}
    for sibling in content["siblings"]:
        name = sibling["rfilename"]
        if not isinstance(name, str) or not is_safe_name(name):
            continue
        large = sibling.get("lfs")
        digest = large.get("sha256") if large else sibling.get("blobId")
        size = large.get("size") if large else sibling.get("size")
        known = is_digest(digest) and type(size) is int and 0 <= size < 2**63
        files[name] = HubFile(name, size, digest) if known else None
    return Listing(commit, files)


def first_byte(answer: Any) -> int:
    """The position of the answer's first byte in the file; -1 if it does not say so properly.

    Content-Range is "bytes FIRST-LAST/SIZE" (RFC 9110, section 14.4).
    """
    if answer.status_code == 200:
        return 0
    unit, _, rest = answer.headers.get("content-range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _transport_errors(session: Any) -> tuple[type[Exception], ...]:
    """What a session raises when a connection fails.

    huggingface_hub has changed the library below between its versions, so its errors are found by
    the session's class, which may be a subclass that an application put in its place.
    """
    for base in type(session).__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        found = [getattr(module, name, None) for name in ("HTTPError", "InvalidURL")]
        errors = [e for e in found if isinstance(e, type) and issubclass(e, Exception)]
        if errors:
            return (*errors, ConnectionError, TimeoutError)
    return (ConnectionError, TimeoutError)


def _token() -> str | None:
    """The user's token: from HF_TOKEN, or where `hf auth login` keeps it."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        return get_token()
    except (OSError, ValueError) as error:
        raise HubError(
            constants.HF_TOKEN_PATH,
            f"the token of your hub account cannot be read ({error})",
            "Allow reading it, or set HF_TOKEN, or set HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to go "
            "without",
        ) from error


def _version() -> str:
    try:
        return version("firstlight")
    except PackageNotFoundError:
        return "source"
