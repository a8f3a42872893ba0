"""Which files in a directory hold a model's weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstlight.checkpoint.files import open_regular, read_exactly
from firstlight.checkpoint.gguf import MAGIC
from firstlight.errors import CheckpointError

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# As DeepSeek's conversion names what each of several processes is to read.
_SPLIT = re.compile(r"model\d+-mp(\d+)\.safetensors")
_NUMBERED = re.compile(r".*-(\d{5})-of-(\d{5})\.[a-z]+", re.DOTALL)


@dataclass(frozen=True)
class FoundWeights:
    """Where the weights are.

    Attributes:
        kind: how they are stored.
        paths: one GGUF file (any part of a set), one index of safetensors, or the safetensors
            files themselves.
    """

    kind: Literal["safetensors", "gguf"]
    paths: tuple[Path, ...]

    @property
    def is_index(self) -> bool:
        """Whether the one path lists the shards instead of being one."""
        return self.paths[0].suffix == ".json"


def find_weights(location: Path) -> FoundWeights:
    """The weights at a directory or GGUF file; only names are looked at, and four bytes.

    A directory is searched as transformers does: model.safetensors, then the index of shards;
    after these the shards without their index, a lone safetensors file, a lone GGUF file.

    Raises:
        CheckpointError: there are none, it is not clear which, or they are stored as pickle.
    """
    try:
        is_folder = location.is_dir()
        names = sorted(file.name for file in location.iterdir()) if is_folder else []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            location, f"cannot be read ({reason})", "Check the path and its permissions"
        ) from None
    if not is_folder:
        return _single_file(location)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if name in names:
            return FoundWeights("safetensors", (location / name,))
    if "adapter_config.json" in names:
        raise CheckpointError(
            location,
            "holds an adapter (LoRA), not a whole model",
            "Merge it into its base model with PEFT's merge_and_unload, and use the result",
        )
    for kind, suffix in (("safetensors", ".safetensors"), ("gguf", ".gguf")):
        found = [
            name for name in names if name.endswith(suffix) and not name.startswith("mmproj")
        ]  # mmproj: a GGUF file of an image encoder beside the language model's
        indices = [name for name in names if name.endswith(suffix + ".index.json")]
        chosen = indices if len(indices) == 1 else found if _is_one_model(found) else []
        if chosen:
            paths = tuple(location / name for name in chosen)
            return FoundWeights("gguf" if kind == "gguf" else "safetensors", paths)
        if any(_SPLIT.fullmatch(name) for name in found):
            raise CheckpointError(
                location,
                f"holds parts of matrices, one file for each of several processes: {_some(found)}",
                "Convert the model again with --model-parallel 1, or use it as it was published",
            )
        if found or indices:
            raise CheckpointError(
                location,
                f"holds {len(found)} {suffix} files and nothing that says which is the model: "
                f"{_some(found or indices)}",
                "Give the path of the one to use"
                if kind == "gguf"
                else "Keep one model in the folder, with its model.safetensors.index.json",
            )
    raise _nothing_usable(location, names)


def _is_one_model(names: list[str]) -> bool:
    """Whether these are a single file, or all numbered parts of one set."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if not all(matches):
        return len(names) == 1
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    counts = {count for _, count in numbers}
    stems = {name[: match.start(1)] for name, match in zip(names, matches, strict=True) if match}
    whole = [number for number, _ in numbers] == list(range(1, len(numbers) + 1))
    return len(stems) == 1 and counts == {len(numbers)} and whole


def _single_file(path: Path) -> FoundWeights:
    with open_regular(path) as (file, size):
        start = read_exactly(file, min(size, 4), path)
    if start == MAGIC or path.suffix == ".gguf":
        return FoundWeights("gguf", (path,))
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        raise CheckpointError(
            path,
            "holds weights only; what model they belong to is in the config.json beside it",
            "Give the path of the folder instead",
        )
    if path.suffix in _PICKLE_SUFFIXES and start.startswith(_PICKLE_STARTS):
        raise _pickle(path, [path.name])
    raise CheckpointError(
        path,
        "is neither a folder with a model nor a GGUF file",
        "Give a folder with config.json and safetensors files, or a .gguf file",
    )


def _nothing_usable(folder: Path, names: list[str]) -> CheckpointError:
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    pickles = [name for name in pickles if name != "training_args.bin"]
    if pickles:
        return _pickle(folder, pickles)
    others = [n for n in names if n.endswith((".h5", ".msgpack", ".onnx", ".npz", ".tflite"))]
    reason = (
        f"holds weights only in other formats ({_some(others)})"
        if others
        else ("holds no weights" if names else "is an empty folder")
    )
    return CheckpointError(
        folder, reason, "Give a folder with config.json and safetensors files, or a .gguf file"
    )


def _pickle(location: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        location,
        f"has its weights only as pickle ({_some(names)}), and reading pickle runs whatever code "
        "its author put there",
        "Use a revision of the model that has .safetensors files, or convert it with the "
        "safetensors project's convert.py on a machine where that code may run",
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(ascii(name)[1:-1] for name in listed[:3]) + (", …" if listed[3:] else "")
