"""A checkpoint into another storage format: streamed, and resumable after every shard.

Shards are written into OUT.unfinished, which takes the name OUT when all is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.conversion.outputs import AnyOutput, outputs_of
from firstlight.conversion.record import NAME, Record, key_of, open_record
from firstlight.conversion.schemes import Plain, Target
from firstlight.conversion.shard_file import shard_file, unwritable
from firstlight.conversion.small_files import check_small_files, model_dtype, write_small_files
from firstlight.conversion.square import Square
from firstlight.conversion.writing import write_output
from firstlight.errors import FirstlightError
from firstlight.model.families.registry import make_spec
from firstlight.progress import ProgressFactory, progress

SHARD_BYTES = 4 << 30
_INDEX = "model.safetensors.index.json"
_SPARE_BYTES = 1 << 26


@dataclass(frozen=True)
class Shard:
    """A file of the converted checkpoint."""

    name: str
    outputs: tuple[AnyOutput, ...]
    nbytes: int


@dataclass(frozen=True)
class LayerError:
    """What became of a layer's matrices, or of those outside all layers (None).

    Attributes:
        matrices: how many were converted.
        relative: root mean square of their change over that of their values.
        worst, worst_relative: the matrix that changed most.
    """

    layer: int | None
    matrices: int
    relative: float
    worst: str
    worst_relative: float


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        bytes_before, bytes_after: of all tensors.
        relative: of all converted matrices together, as in `LayerError`.
        kept: modules whose matrices were not converted.
        resumed: shards that were there from an earlier attempt.
    """

    out: Path
    target: str
    shards: int
    resumed: int
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerError, ...]
    relative: float
    kept: tuple[str, ...]


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    target: Target,
    *,
    shard_bytes: int = SHARD_BYTES,
    show: ProgressFactory = progress,
) -> Report:
    """Write the checkpoint with its matrices as `target` says.

    Args:
        shard_bytes: of a file, at most, unless one tensor alone is larger.
        show: a progress bar.

    Raises:
        FirstlightError: OUT exists, the disk is too small, the model is of no known family, or its
            values cannot be expressed. What was finished stays in OUT.unfinished.
    """
    _check_free(out)
    if checkpoint.stand_in is not None:
        raise checkpoint.stand_in.refusal(checkpoint.location)
    check_small_files(checkpoint)
    target = target.for_model(model_dtype(checkpoint))
    outputs = outputs_of(checkpoint, make_spec(checkpoint), target)
    shards = _shards(outputs, checkpoint, shard_bytes)
    folder = out.with_name(f"{out.name}.unfinished")
    try:
        record = open_record(folder, key_of(checkpoint, target, outputs, shard_bytes))
        left = [shard for shard in shards if not record.finished(shard.name, shard.nbytes)]
        _check_space(folder, sum(shard.nbytes for shard in left))
        total = sum(each.read_bytes(checkpoint) for shard in left for each in shard.outputs)
        with show(f"Converting to {target.name}", total=total) as advance:
            for shard in left:
                entries = tuple(e for each in shard.outputs for e in each.entries(checkpoint))
                squares: dict[str, Square] = {}
                with shard_file(folder / shard.name, entries) as file:
                    for output in shard.outputs:
                        square = write_output(output, checkpoint, file, advance)
                        if square is not None:
                            squares[output.name] = square
                record.add(shard.name, squares)
        write_small_files(checkpoint, folder, outputs, target)
        _write_index(folder, shards, checkpoint)
        _finish(folder, out)
    except OSError as error:
        raise unwritable(folder, error) from error
    return _report(checkpoint, out, target, shards, record, len(shards) - len(left))


def _check_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise FirstlightError(
            out,
            "exists already, and nothing is ever overwritten",
            "Name another folder, or delete that one first",
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise FirstlightError(
            folder,
            f"needs {needed:,} more bytes, and {free:,} are free on its disk",
            "Make room there, or name a folder on another disk",
        )


def _shards(
    outputs: tuple[AnyOutput, ...], checkpoint: Checkpoint, shard_bytes: int
) -> tuple[Shard, ...]:
    groups: list[list[AnyOutput]] = [[]]
    sizes = [0]
    for output in outputs:
        size = sum(entry.nbytes for entry in output.entries(checkpoint))
        if sizes[-1] and sizes[-1] + size > shard_bytes:
            groups.append([])
            sizes.append(0)
        groups[-1].append(output)
        sizes[-1] += size
    count = len(groups)
    names = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{place:05}-of-{count:05}.safetensors" for place in range(1, count + 1)]
    )
    triples = zip(names, groups, sizes, strict=True)
    return tuple(Shard(name, tuple(group), size) for name, group, size in triples)


def _write_index(folder: Path, shards: tuple[Shard, ...], checkpoint: Checkpoint) -> None:
    if len(shards) == 1:
        return
    names = {
        entry.name: shard.name
        for shard in shards
        for output in shard.outputs
        for entry in output.entries(checkpoint)
    }
    size = sum(shard.nbytes for shard in shards)
    document = {"metadata": {"total_size": size}, "weight_map": names}
    (folder / _INDEX).write_text(json.dumps(document, indent=1))


def _finish(folder: Path, out: Path) -> None:
    """Give the folder its name; the record goes last."""
    for path in folder.iterdir():
        if path.name.endswith(".tmp"):
            path.unlink()  # of an attempt that was killed
    _check_free(out)
    (folder / NAME).unlink()
    folder.rename(out)


def _report(
    checkpoint: Checkpoint,
    out: Path,
    target: Target,
    shards: tuple[Shard, ...],
    record: Record,
    resumed: int,
) -> Report:
    schemes = (target.scheme, target.experts)
    squares = {name: each for found in record.shards.values() for name, each in found.items()}
    outputs = [output for shard in shards for output in shard.outputs]
    converted = [each for each in outputs if each.scheme in schemes and each.name in squares]
    layers = dict.fromkeys(each.layer for each in converted)
    kept = (each.module for each in outputs if len(each.shape) == 2 and each.scheme not in schemes)
    return Report(
        out=out,
        target=target.name,
        shards=len(shards),
        resumed=resumed,
        bytes_before=sum(info.nbytes for info in checkpoint.tensors.values()),
        bytes_after=sum(shard.nbytes for shard in shards),
        layers=tuple(
            _layer_error(layer, [(e.name, squares[e.name]) for e in converted if e.layer == layer])
            for layer in layers
        ),
        relative=_sum(squares[each.name] for each in converted).relative,
        kept=tuple(kept) if not isinstance(target.scheme, Plain) else (),
    )


def _layer_error(layer: int | None, squares: list[tuple[str, Square]]) -> LayerError:
    worst, square = max(squares, key=lambda pair: pair[1].relative)
    total = _sum(each for _, each in squares)
    return LayerError(layer, len(squares), total.relative, worst, square.relative)


def _sum(squares: Iterable[Square]) -> Square:
    total = Square(0.0, 0.0)
    for square in squares:
        total += square
    return total
