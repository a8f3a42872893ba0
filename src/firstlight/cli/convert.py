"""`firstlight convert`: a checkpoint in another storage format, on disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.cli.columns import aligned
from firstlight.cli.options import MODEL_HELP, add_hub
from firstlight.cli.terminal import harmless, json_text

if TYPE_CHECKING:
    from firstlight.conversion.convert import LayerError, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert`."""
    parser.epilog = (
        "OUT is written beside its final place, as OUT.unfinished, and gets its name when it is "
        "whole. If it is interrupted, the same command goes on with what is missing."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make; it must not exist")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FORMAT",
        help="int4, int8, q4_0, fp8, bf16, f16 or f32 (docs/convert.md)",
    )
    parser.add_argument(
        "--shard-size",
        default="4GiB",
        metavar="SIZE",
        help="largest file, such as 4GiB or 500MiB (default: 4GiB)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print what became of each layer."""
    from firstlight.conversion.schemes import target_of

    target = target_of(arguments.weights)
    shard_bytes = _size(arguments.shard_size)
    from firstlight.checkpoint.checkpoint import open_checkpoint
    from firstlight.checkpoint.resolve import resolve_model
    from firstlight.conversion.convert import convert_checkpoint
    from firstlight.progress import set_quiet

    set_quiet(arguments.quiet)
    path = resolve_model(arguments.model, endpoint=arguments.endpoint, update=arguments.update)
    checkpoint = open_checkpoint(path)
    out = arguments.out.expanduser().absolute()
    report = convert_checkpoint(checkpoint, out, target, shard_bytes=shard_bytes)
    if arguments.json:
        print(json_text(_values(arguments.model, report)))
        return 0
    if report.layers:
        print(harmless(_table(report)))
    if not arguments.quiet:
        print(harmless(_summary(report)), file=sys.stderr)
    return 0


def _size(text: str) -> int:
    from firstlight.errors import RequestError
    from firstlight.host.byte_size import byte_size

    size = byte_size(text)
    if size is None or size < 1:
        raise RequestError(f"--shard-size {text}", "is no size", "Give one such as 4GiB or 500MiB")
    return size


def _table(report: Report) -> str:
    rows = [("layer", "matrices", "relative RMS error", "worst matrix", "its error")]
    for layer in report.layers:
        rows.append(
            (
                _name(layer),
                str(layer.matrices),
                f"{layer.relative:.3%}",
                layer.worst,
                f"{layer.worst_relative:.3%}",
            )
        )
    return aligned(rows, left=(0, 3))


def _name(layer: LayerError) -> str:
    return "outside" if layer.layer is None else str(layer.layer)


def _summary(report: Report) -> str:
    kept = f" {len(report.kept)} matrices were kept as they are." if report.kept else ""
    resumed = f", {report.resumed} of them from before" if report.resumed else ""
    return (
        f"firstlight: wrote {report.out} in {report.shards} files{resumed}: "
        f"{report.bytes_after:,} bytes in place of {report.bytes_before:,}, with a relative error "
        f"of {report.relative:.3%}.{kept}"
    )


def _values(model: str, report: Report) -> dict[str, Any]:
    return {
        "model": model,
        "out": str(report.out),
        "weights": report.target,
        "files": report.shards,
        "resumed": report.resumed,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "relative_error": report.relative,
        "layers": [
            {
                "layer": each.layer,
                "matrices": each.matrices,
                "relative_error": each.relative,
                "worst": each.worst,
                "worst_relative_error": each.worst_relative,
            }
            for each in report.layers
        ],
        "kept": list(report.kept),
    }
