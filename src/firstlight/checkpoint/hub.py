"""Models from a hub: found in the local cache, or downloaded, verified and kept there.

Only what firstlight reads is downloaded. Every file's content is compared with the digest that
the hub gives for it, once; later starts of a model that is whole use no network at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstlight.checkpoint.hub_cache import HubFile, RepositoryCache, VerificationRecord, is_commit
from firstlight.checkpoint.hub_client import HubClient, HubUnreachableError
from firstlight.checkpoint.hub_headers import StandIns
from firstlight.checkpoint.hub_reference import HubReference, parse_reference
from firstlight.checkpoint.hub_snapshot import Selection, SnapshotDownload
from firstlight.errors import FirstlightError, HubError
from firstlight.progress import ProgressFactory, progress

__all__ = ["HubReference", "fetch", "parse_reference"]


def fetch(
    reference: HubReference,
    *,
    endpoint: str | None = None,
    update: bool = False,
    headers_only: bool = False,
    progress: ProgressFactory = progress,
    cache: Path | None = None,
    retry_seconds: float = 1.0,
) -> Path:
    """The model's directory, or its GGUF file, in the local cache; downloaded where it is not.

    A snapshot that is whole and verified is used as it is, without asking the hub whether the
    branch has moved on.

    Args:
        reference: the model.
        endpoint: the hub's address; HF_ENDPOINT or the public hub if None.
        update: ask the hub even so.
        headers_only: where the weights are not here, fetch only their headers; the result is then
            a stand-in (see `stand_in`).
        cache: the hub cache's directory; where huggingface_hub keeps it if None.
        retry_seconds: the wait after a first failure of the connection.

    Raises:
        HubError: the hub cannot be reached, refuses, has no usable weights, or sends something
            other than it announced; or the disk is too small or cannot be written.
    """
    if cache is None:
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
    place = RepositoryCache(cache, reference.repository)
    known = place.commit(reference.revision)
    if known is not None and not update:
        whole = VerificationRecord(place, known).selection(reference.file)
        if whole is not None:
            return _entry(place, known, whole)
    stand_ins = StandIns(reference)
    if headers_only and not update and (found := stand_ins.find()) is not None:
        return found
    client = HubClient(endpoint, reference.repository, reference.revision)
    commit, files, unreachable = _listing(client, reference, place, None if update else known)
    download = SnapshotDownload(client, place, commit, files, progress, retry_seconds)
    try:
        selection = _select(download, reference, unreachable)
        if headers_only:
            download.bring(selection.others)
            if not download.holds(selection.weights):
                return stand_ins.fetch(download, selection)
        else:
            download.bring(selection.names)
            download.remember(reference.file, selection)
            place.remember_commit(reference.revision, commit)
    except HubError:
        raise
    except (OSError, FirstlightError) as error:
        raise HubError(
            str(place.directory),
            f"cannot be written or read ({error})",
            "Make room there or allow writing, or set HF_HUB_CACHE to another directory",
        ) from error
    return _entry(place, commit, selection.names)


def _listing(
    client: HubClient, reference: HubReference, place: RepositoryCache, known: str | None
) -> tuple[str, dict[str, HubFile | None], HubUnreachableError | None]:
    """The commit and its files: as the hub lists them, or else what the cache has of `known`.

    The error says why the hub did not.
    """
    try:
        listing = client.listing()
    except HubUnreachableError as error:
        # What another program has downloaded may be all we need. Its links tell the digests.
        cached = place.snapshot_files(known) if known is not None else {}
        if known is None or not cached:
            raise
        return known, dict(cached), error
    if is_commit(reference.revision) and listing.commit != reference.revision:
        raise HubError(
            str(reference),
            f"{client.endpoint} answers with another commit, {listing.commit}",
            "Name another hub with --endpoint URL or HF_ENDPOINT",
        )
    return listing.commit, listing.files, None


def _select(
    download: SnapshotDownload, reference: HubReference, unreachable: HubUnreachableError | None
) -> Selection:
    try:
        return download.select(reference.file)
    except HubError as error:
        if unreachable is None:
            raise
        # What seems to be wrong with the repository is only that the cache lacks a part of it.
        raise HubUnreachableError(
            unreachable.subject,
            f"{unreachable.reason}; and in the local cache {error.subject} {error.reason}",
            unreachable.remedy,
        ) from error


def _entry(place: RepositoryCache, commit: str, names: Sequence[str]) -> Path:
    """What is to be opened: the first GGUF file if any was chosen, else the snapshot."""
    snapshot = place.snapshot(commit)
    for name in names:
        if name.lower().endswith(".gguf"):
            return snapshot / name
    return snapshot
