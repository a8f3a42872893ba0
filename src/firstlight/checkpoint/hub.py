"""Models from a hub: found in the local cache, or downloaded, verified and kept there.

Only what firstlight reads is downloaded. Every file's content is compared with the digest that
the hub gives for it, once; later starts of a model that is whole use no network at all.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from firstlight.checkpoint import hub_selection
from firstlight.checkpoint.hub_cache import (
    HubFile,
    RepositoryCache,
    VerificationRecord,
    is_commit,
)
from firstlight.checkpoint.hub_client import ELSEWHERE, HubClient, HubUnreachableError
from firstlight.checkpoint.hub_transfer import Stopped, download, matches_digest
from firstlight.errors import FirstlightError, HubError
from firstlight.progress import ProgressFactory, progress

_WORKERS = 4
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")


@dataclass(frozen=True)
class HubReference:
    """A model on a hub.

    Attributes:
        repository: "ORG/NAME".
        revision: branch, tag or commit.
        file: the GGUF file to use; empty for the repository's own choice.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        name = f"{self.repository}/{self.file}" if self.file else self.repository
        return name if self.revision == "main" else f"{name}@{self.revision}"


def parse_reference(text: str) -> HubReference | None:
    """Read ORG/NAME[/FILE.gguf][@REVISION]; None if the text is not of that form."""
    name, separator, revision = text.partition("@")
    if separator and (not _REVISION.fullmatch(revision) or ".." in revision):
        return None
    organisation, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    for part in (organisation, repository):
        if not _PART.fullmatch(part) or ".." in part or "--" in part or len(part) > 96:
            return None
    if repository.lower().endswith((".gguf", ".git")):
        return None
    if rest != repository and not (
        file.lower().endswith(".gguf") and hub_selection.is_safe_name(file)
    ):
        return None
    return HubReference(f"{organisation}/{repository}", revision or "main", file)


def fetch(
    reference: HubReference,
    *,
    endpoint: str | None = None,
    update: bool = False,
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
    client = HubClient(endpoint, reference.repository, reference.revision)
    try:
        listing = client.listing()
        commit, files = listing.commit, listing.files
        if is_commit(reference.revision) and commit != reference.revision:
            raise HubError(
                str(reference),
                f"{client.endpoint} answers with another commit, {commit}",
                "Name another hub with --endpoint URL or HF_ENDPOINT",
            )
    except HubUnreachableError:
        # What another program has downloaded may be all we need. Its links tell the digests.
        if known is None or update:
            raise
        commit, files = known, dict(place.snapshot_files(known))
        if not files:
            raise
    job = _Fetch(client, place, commit, files, progress, retry_seconds)
    try:
        names = job.run(reference.file)
        place.remember_commit(reference.revision, commit)
    except HubError:
        raise
    except (OSError, FirstlightError) as error:
        raise HubError(
            str(place.directory),
            f"cannot be written or read ({error})",
            "Make room there or allow writing, or set HF_HUB_CACHE to another directory",
        ) from error
    return _entry(place, commit, names)


def _entry(place: RepositoryCache, commit: str, names: Sequence[str]) -> Path:
    """What is to be opened: the first GGUF file if any was chosen, else the snapshot."""
    snapshot = place.snapshot(commit)
    for name in names:
        if name.lower().endswith(".gguf"):
            return snapshot / name
    return snapshot


class _Fetch:
    """One repository at one commit being brought into the cache."""

    def __init__(
        self,
        client: HubClient,
        place: RepositoryCache,
        commit: str,
        files: dict[str, HubFile | None],
        progress: ProgressFactory,
        retry_seconds: float,
    ) -> None:
        self._client, self._place, self._commit = client, place, commit
        self._files, self._progress = files, progress
        self._retry_seconds = retry_seconds
        self._record = VerificationRecord(place, commit)

    def run(self, wanted: str) -> list[str]:
        """Bring in what `wanted` needs; the names of it, weights first."""
        repository, names = self._client.repository, self._files
        if wanted or not hub_selection.has_safetensors(names):
            if not any(name.lower().endswith(".gguf") for name in names):
                raise hub_selection.refuse_without_weights(repository, names)
            weights = hub_selection.gguf_files(repository, names, wanted or None)
            others = hub_selection.document_files(names)
        else:
            others = hub_selection.description_files(names)
            index = None
            if hub_selection.INDEX_NAME in names:
                # Only the index tells which weights are needed, and so how much room they take.
                self._bring([hub_selection.INDEX_NAME])
                index = self._read_index()
            weights = hub_selection.safetensors_files(repository, names, index)
        selection = [*weights, *others]
        self._bring(selection)
        self._record.save([], {wanted: selection})
        return selection

    def _read_index(self) -> object:
        path = self._place.snapshot(self._commit) / hub_selection.INDEX_NAME
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return {}  # which safetensors_files refuses, as it does any other wrong content

    def _bring(self, names: Sequence[str]) -> None:
        """Have these files in the snapshot, verified."""
        chosen = [self._known(name) for name in names]
        present = [file for file in chosen if self._place.has(self._commit, file)]
        unverified = [file for file in present if not self._record.is_verified(file)]
        broken = self._verify(unverified)
        missing = [file for file in chosen if file not in present] + broken
        if not missing:
            return
        if self._client.offline:
            raise HubError(
                self._client.repository,
                f"the local cache lacks {missing[0].name}, and HF_HUB_OFFLINE forbids to fetch it",
                "Unset HF_HUB_OFFLINE and start again",
            )
        self._refuse_if_disk_too_small(missing)
        # One content can have several names, and is downloaded once.
        contents = list({file.digest: file for file in missing}.values())
        total = sum(file.size for file in contents)
        with self._progress(f"Downloading {self._client.repository}", total) as advance:
            _in_parallel(contents, lambda file, stop: self._download(file, advance, stop))
        for file in missing:
            self._place.link(self._commit, file)
        self._record.save(missing)

    def _known(self, name: str) -> HubFile:
        file = self._files[name]
        if file is None:
            raise HubError(
                f"{self._client.repository}/{name}",
                f"{self._client.endpoint} gives no checksum for it, so it could not be verified",
                f"To go on, {ELSEWHERE}",
            )
        return file

    def _verify(self, files: Sequence[HubFile]) -> list[HubFile]:
        """Read files that are there but were never checked; those that failed are removed."""
        broken: list[HubFile] = []
        if not files:
            return broken
        total = sum(file.size for file in files)
        with self._progress(f"Verifying {self._client.repository}", total) as advance:

            def verify(file: HubFile, stop: threading.Event) -> None:
                path = self._place.snapshot(self._commit) / file.name
                if not matches_digest(path, file, advance, stop):
                    broken.append(file)

            _in_parallel(files, verify)
        self._record.save([file for file in files if file not in broken])
        for file in broken:
            self._place.remove(self._commit, file)
        return broken

    def _refuse_if_disk_too_small(self, missing: Sequence[HubFile]) -> None:
        needed = 0
        for file in missing:
            partial = self._place.partial(file)
            needed += file.size - (partial.stat().st_size if partial.exists() else 0)
        directory = self._place.directory
        while not directory.exists():
            directory = directory.parent
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise HubError(
                self._client.repository,
                f"needs {needed / 1e9:.2f} GB more on disk, and {directory} has only "
                f"{free / 1e9:.2f} GB free",
                "Make room there, or set HF_HUB_CACHE to a directory on a larger disk",
            )

    def _download(
        self, file: HubFile, advance: Callable[[int], None], stop: threading.Event
    ) -> None:
        # Exported by name at run time only, which the type checker does not see.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        lock = self._place.lock(file)
        lock.parent.mkdir(parents=True, exist_ok=True)
        blob = self._place.blob(file)
        with WeakFileLock(lock):
            # Another process may have brought it while this one waited for the lock.
            if blob.exists() and matches_digest(blob, file, lambda _: None, stop):
                advance(file.size)
                return
            blob.unlink(missing_ok=True)
            download(
                self._client,
                self._commit,
                file,
                self._place.partial(file),
                blob,
                advance,
                stop,
                self._retry_seconds,
            )


def _in_parallel(
    files: Sequence[HubFile], work: Callable[[HubFile, threading.Event], None]
) -> None:
    """Do `work` for each file, a few at a time; the first failure stops the others and is raised.

    Large files go first, so that the last ones to finish are small.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            ordered = sorted(files, key=lambda file: file.size, reverse=True)
            futures = [pool.submit(work, file, stop) for file in ordered]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Also when the user interrupts: the threads end at their next piece of a file.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    failures = [f.exception() for f in futures if f.done() and not f.cancelled()]
    for failure in failures:
        if failure is not None and not isinstance(failure, Stopped):
            raise failure
