"""One repository at one commit, being brought into the hub's local cache."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstlight.checkpoint import hub_selection
from firstlight.checkpoint.hub_cache import HubFile, RepositoryCache, VerificationRecord
from firstlight.checkpoint.hub_client import ELSEWHERE, HubClient
from firstlight.checkpoint.hub_parallel import in_parallel
from firstlight.checkpoint.hub_transfer import download, matches_digest
from firstlight.errors import HubError
from firstlight.progress import ProgressFactory

_WORKERS = 4


@dataclass(frozen=True)
class Selection:
    """The files of a repository that a model needs.

    Attributes:
        weights: those that hold tensors; of a GGUF file in parts, the one to open is the first.
        others: configuration, tokenizer, licence.
    """

    weights: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.weights, *self.others)


class SnapshotDownload:
    """Brings files of one repository at one commit into the local cache, verified.

    Args:
        client: the connection to the hub.
        place: the repository in the local cache.
        commit: the full commit id.
        files: name -> file, or None where its size and digest are not known.
        progress: shows what takes long.
        retry_seconds: the wait after a first failure of the connection.
    """

    def __init__(
        self,
        client: HubClient,
        place: RepositoryCache,
        commit: str,
        files: dict[str, HubFile | None],
        progress: ProgressFactory,
        retry_seconds: float,
    ) -> None:
        self.client, self.place, self.commit = client, place, commit
        self._files, self.progress = files, progress
        self.retry_seconds = retry_seconds
        self._record = VerificationRecord(place, commit)

    def select(self, wanted: str) -> Selection:
        """What `wanted` needs; for that, an index of shards is brought in.

        Args:
            wanted: the GGUF file to use; empty for the repository's own choice.

        Raises:
            HubError: the repository has no such weights, or the index cannot be had.
        """
        repository, names = self.client.repository, self._files
        if wanted or not hub_selection.has_safetensors(names):
            if not any(name.lower().endswith(".gguf") for name in names):
                raise hub_selection.refuse_without_weights(repository, names)
            weights = hub_selection.gguf_files(repository, names, wanted or None)
            return Selection(tuple(weights), tuple(hub_selection.document_files(names)))
        index = None
        if hub_selection.INDEX_NAME in names:
            # Only the index tells which weights are needed, and so how much room they take.
            self.bring([hub_selection.INDEX_NAME])
            index = self._read_index()
        weights = hub_selection.safetensors_files(repository, names, index)
        return Selection(tuple(weights), tuple(hub_selection.description_files(names)))

    def holds(self, names: Sequence[str]) -> bool:
        """Whether the snapshot has all these files in their full size, verified or not."""
        return all(self.place.has(self.commit, self.file(name)) for name in names)

    def remember(self, wanted: str, selection: Selection) -> None:
        """Note that what `wanted` needs is whole, so that the hub need not be asked again."""
        self._record.save([], {wanted: selection.names})

    def _read_index(self) -> object:
        path = self.place.snapshot(self.commit) / hub_selection.INDEX_NAME
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return {}  # which safetensors_files refuses, as it does any other wrong content

    def bring(self, names: Sequence[str]) -> None:
        """Have these files in the snapshot, verified.

        Raises:
            HubError: the hub cannot be reached, refuses, or sends something other than it
                announced; or the disk is too small.
            OSError: the cache cannot be read or written.
        """
        chosen = [self.file(name) for name in names]
        present = [file for file in chosen if self.place.has(self.commit, file)]
        unverified = [file for file in present if not self._record.is_verified(file)]
        broken = self._verify(unverified)
        missing = [file for file in chosen if file not in present] + broken
        if not missing:
            return
        if self.client.offline:
            raise HubError(
                self.client.repository,
                f"the local cache lacks {missing[0].name}, and HF_HUB_OFFLINE forbids to fetch it",
                "Unset HF_HUB_OFFLINE and start again",
            )
        self._refuse_if_disk_too_small(missing)
        # One content can have several names, and is downloaded once.
        contents = list({file.digest: file for file in missing}.values())
        total = sum(file.size for file in contents)
        with self.progress(f"Downloading {self.client.repository}", total) as advance:
            in_parallel(contents, lambda file, stop: self._download(file, advance, stop), _WORKERS)
        for file in missing:
            self.place.link(self.commit, file)
        self._record.save(missing)

    def file(self, name: str) -> HubFile:
        """Size and digest of a file; HubError where the hub does not give them."""
        file = self._files[name]
        if file is None:
            raise HubError(
                f"{self.client.repository}/{name}",
                f"{self.client.endpoint} gives no checksum for it, so it could not be verified",
                f"To go on, {ELSEWHERE}",
            )
        return file

    def _verify(self, files: Sequence[HubFile]) -> list[HubFile]:
        """Read files that are there but were never checked; those that failed are removed."""
        broken: list[HubFile] = []
        if not files:
            return broken
        total = sum(file.size for file in files)
        with self.progress(f"Verifying {self.client.repository}", total) as advance:

            def verify(file: HubFile, stop: threading.Event) -> None:
                path = self.place.snapshot(self.commit) / file.name
                if not matches_digest(path, file, advance, stop):
                    broken.append(file)

            in_parallel(files, verify, _WORKERS)
        self._record.save([file for file in files if file not in broken])
        for file in broken:
            self.place.remove(self.commit, file)
        return broken

    def _refuse_if_disk_too_small(self, missing: Sequence[HubFile]) -> None:
        needed = 0
        for file in missing:
            partial = self.place.partial(file)
            needed += file.size - (partial.stat().st_size if partial.exists() else 0)
        directory = self.place.directory
        while not directory.exists():
            directory = directory.parent
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise HubError(
                self.client.repository,
                f"needs {needed / 1e9:.2f} GB more on disk, and {directory} has only "
                f"{free / 1e9:.2f} GB free",
                "Make room there, or set HF_HUB_CACHE to a directory on a larger disk",
            )

    def _download(
        self, file: HubFile, advance: Callable[[int], None], stop: threading.Event
    ) -> None:
        # Exported by name at run time only, which the type checker does not see.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        lock = self.place.lock(file)
        lock.parent.mkdir(parents=True, exist_ok=True)
        blob = self.place.blob(file)
        with WeakFileLock(lock):
            # Another process may have brought it while this one waited for the lock.
            if blob.exists() and matches_digest(blob, file, lambda _: None, stop):
                advance(file.size)
                return
            blob.unlink(missing_ok=True)
            download(
                self.client,
                self.commit,
                file,
                self.place.partial(file),
                blob,
                advance,
                stop,
                self.retry_seconds,
            )
