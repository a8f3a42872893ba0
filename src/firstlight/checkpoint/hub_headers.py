"""The headers of a hub's weights files: all that `inspect` needs of a model that is not here.

They go into a stand-in (see `stand_in`) in firstlight's own cache, never into the hub's, whose
other users would take the files for weights. A part of a file cannot be compared with the file's
digest, so what a stand-in says is what the hub said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from firstlight.checkpoint.header_range import HeaderRange
from firstlight.checkpoint.hub_cache import HubFile, RepositoryCache
from firstlight.checkpoint.hub_parallel import in_parallel
from firstlight.checkpoint.hub_reference import HubReference
from firstlight.checkpoint.hub_snapshot import Selection, SnapshotDownload
from firstlight.checkpoint.stand_in import NOTE
from firstlight.errors import FirstlightError, HubError
from firstlight.host.cache import cache_directory

_WORKERS = 16  # headers are small: what they cost is waiting for answers


class StandIns:
    """The stand-ins of one model of a hub, in firstlight's cache."""

    def __init__(self, reference: HubReference) -> None:
        self._reference = reference
        # Which commit a branch was is kept here, apart from the hub's cache: that one goes on
        # naming a commit whose weights are there.
        self._place = RepositoryCache(cache_directory() / "headers", reference.repository)

    def find(self) -> Path | None:
        """What is to be opened, if it was fetched before and is still whole."""
        commit = self._place.commit(self._reference.revision)
        if commit is None:
            return None
        return _opened(self._folder(commit))

    def fetch(self, download: SnapshotDownload, selection: Selection) -> Path:
        """Make the stand-in of a snapshot that has all but the weights; what is to be opened.

        Raises:
            HubError: the hub cannot be reached or refuses, a header is damaged, or the cache
                cannot be written.
        """
        weights = [download.file(name) for name in selection.weights]
        # The parts of a GGUF file lie in one directory of the repository; here in the folder.
        flat = weights[0].name.lower().endswith(".gguf")
        places = {file.name: Path(file.name).name if flat else file.name for file in weights}
        sizes = {places[file.name]: file.size for file in weights}
        note = {
            "model": str(replace(self._reference, revision=download.commit)),
            "endpoint": download.client.endpoint,
            "digests": {places[file.name]: file.digest for file in weights},
            "sizes": sizes,
        }
        folder = self._folder(download.commit)
        label = f"Reading headers of {download.client.repository}"
        try:
            with (
                _whole_or_not_at_all(folder) as temporary,
                download.progress(label, len(weights), unit="files") as advance,
            ):

                def fetch_header(file: HubFile, stop: threading.Event) -> None:
                    HeaderRange(download, file, stop).write(temporary / places[file.name])
                    advance(1)

                in_parallel(weights, fetch_header, _WORKERS)
                for name in () if flat else selection.others:
                    _link(download.place.snapshot(download.commit) / name, temporary / name)
                    sizes[name] = (temporary / name).stat().st_size
                (temporary / NOTE).write_text(json.dumps(note, indent=1))
            self._place.remember_commit(self._reference.revision, download.commit)
        except HubError:
            raise
        except (OSError, FirstlightError) as error:
            raise HubError(
                folder,
                f"cannot be written ({error})",
                "Make room there or allow writing, or set FIRSTLIGHT_CACHE to another directory",
            ) from error
        opened = _opened(folder)
        assert opened is not None
        return opened

    def _folder(self, commit: str) -> Path:
        wanted = self._reference.file
        suffix = f"-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}" if wanted else ""
        return self._place.snapshot(commit + suffix)


def _opened(folder: Path) -> Path | None:
    """What is to be opened of a stand-in: its first GGUF file, or itself; None if not whole."""
    try:
        note = json.loads((folder / NOTE).read_bytes())
        for name, size in note["sizes"].items():
            if (folder / name).stat().st_size != size:
                return None
        weights = list(note["digests"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return next((folder / name for name in weights if name.lower().endswith(".gguf")), folder)


@contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place once the block is done."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if _opened(folder) is None:  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(file: Path, place: Path) -> None:
    """Let `place` be the file too."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        place.symlink_to(file.resolve())
        return
    shutil.copyfile(file, place)
