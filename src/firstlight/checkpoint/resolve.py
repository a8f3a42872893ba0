"""From what a user calls a model to where its files are."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from firstlight.checkpoint.stand_in import stand_in_at
from firstlight.errors import HubError, RequestError
from firstlight.progress import ProgressFactory, progress

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve_model(
    model: str,
    *,
    endpoint: str | None = None,
    update: bool = False,
    headers_only: bool = False,
    progress: ProgressFactory = progress,
) -> Path:
    """The directory or GGUF file of a model, downloaded or put together if need be.

    Args:
        model: a directory in the Hugging Face layout; a .gguf file; ORG/NAME on a hub, with
            /FILE.gguf to choose a file and @REVISION to choose a branch, tag or commit; or
            "demo", which always means the demo model (a directory of that name is "./demo").
        endpoint: the hub's address; HF_ENDPOINT or the public hub if None.
        update: ask the hub whether a branch that is in the local cache has moved on.
        headers_only: of a model on a hub whose weights are not here, fetch only their headers. What
            is given then is a stand-in (see `stand_in`), which can be inspected and nothing else.
        progress: shows what takes long.

    Raises:
        RequestError: the text is none of these, or names a path that is no model.
        HubError: the model cannot be fetched.
        CheckpointError: the demo model is not installed or damaged.
    """
    # Imported here because each serves one kind of model only.
    if model == "demo":
        from firstlight.checkpoint.demo import demo_model

        return demo_model(progress)
    if not model.strip() or "\0" in model:
        raise RequestError(
            repr(model),
            "is not the name of a model",
            "Give a model directory, a .gguf file, ORG/NAME on a hub, or demo",
        )
    path = _expanded(model)
    if _exists(path):
        return _local(path, headers_only)
    from firstlight.checkpoint.hub import fetch, parse_reference

    reference = None if _is_explicit_path(model) else parse_reference(model)
    if reference is None:
        raise _not_found(model, path)
    try:
        return fetch(
            reference,
            endpoint=endpoint,
            update=update,
            headers_only=headers_only,
            progress=progress,
        )
    except HubError as error:
        # "models/llama" reads as an id too; where such a directory exists, a path may be meant.
        if not _exists(Path(reference.repository).parent):
            raise
        raise type(error)(
            error.subject,
            f"{error.reason}; and as a path it does not exist ({_nearest(path)})",
            error.remedy,
        ) from error


def _expanded(model: str) -> Path:
    """The text as a path, with ~ for a home directory where there is such a user."""
    try:
        return Path(model).expanduser()
    except RuntimeError:
        return Path(model)


def _local(path: Path, headers_only: bool) -> Path:
    """`path` if it is a model, RequestError if it is something else."""
    stand_in = stand_in_at(path)
    if stand_in is not None and not headers_only:
        raise stand_in.refusal(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise _no_model_directory(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return path
    if suffix == ".safetensors" or path.name == "config.json":
        reason, remedy = "is one file of a model", f"Give its directory: {path.parent}"
    elif suffix in _PICKLES:
        reason = "looks like a pickle, and reading one runs whatever code it carries"
        remedy = "Give the model as safetensors or GGUF"
    else:
        reason = "is neither a .gguf file nor a model directory"
        remedy = "Give a .gguf file, or a directory with config.json and safetensors files"
    raise RequestError(path, reason, remedy)


def _no_model_directory(path: Path) -> RequestError:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return RequestError(
            path, f"cannot be listed ({error.strerror})", "Allow reading it, or give another"
        )
    files = [name for name in names if name.lower().endswith(".gguf")]
    models = [name for name in names if _exists(path / name / "config.json")]
    if files:
        remedy = f"Give the file itself: {path / files[0]}"
    elif models:
        remedy = f"A model lies below: {path / models[0]}"
    elif (path / "snapshots").is_dir():
        snapshots = sorted((path / "snapshots").iterdir())
        remedy = f"Give a snapshot of this hub cache: {snapshots[0] if snapshots else 'none yet'}"
    else:
        remedy = "Give the directory that holds config.json and the weights"
    held = f"{len(files)} GGUF file(s)" if files else f"{len(names)} other entries"
    return RequestError(path, f"is a directory without config.json; it holds {held}", remedy)


def _not_found(model: str, path: Path) -> RequestError:
    address = re.match(r"https?://[^/]+/([^/]+/[^/?#]+)", model)
    if address:
        return RequestError(
            model, "is an address, not a model's name", f"Give only the id: {address[1]}"
        )
    if _is_explicit_path(model) or model.lower().endswith(".gguf") or "/" in model:
        return RequestError(
            model,
            f"was taken for a path, and there is nothing ({_nearest(path)})",
            "Correct the path; a model on a hub is ORG/NAME, ORG/NAME/FILE.gguf or "
            "ORG/NAME@REVISION",
        )
    return RequestError(
        model,
        f"is neither a directory nor a .gguf file here ({_nearest(path)}), and a model on a hub "
        "has the form ORG/NAME",
        "Give a model directory, a .gguf file, ORG/NAME, or demo",
    )


def _is_explicit_path(model: str) -> bool:
    """Whether the text can only be meant as a path."""
    return model.startswith((".", "/", "~")) or Path(model).is_absolute() or "\\" in model


def _nearest(path: Path) -> str:
    """Words for what does exist near a path that does not: a similar name, or its ancestor."""
    path = path.absolute()
    parent = next(ancestor for ancestor in path.parents if _exists(ancestor))
    missing = path.relative_to(parent).parts[0]
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    close = get_close_matches(missing, names, n=1)
    return f"nearest: {parent / close[0]}" if close else f"only {parent} exists"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
