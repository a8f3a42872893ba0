"""`firstlight inspect`: what a model is and whether it runs here, from headers alone."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.cli.options import add_hub, add_model

if TYPE_CHECKING:
    from firstlight.checkpoint.checkpoint import Checkpoint
    from firstlight.engine.memory_plan import MemoryPlan
    from firstlight.formats.base import Format
    from firstlight.model.spec import ModelSpec

_CONTEXTS = (2048, 8192, 32768, 131072, 1048576)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--digest", action="store_true", help="add the sha256 of each file")
    parser.add_argument("--device", default="cpu", help="chip that it would run on (default: cpu)")
    parser.add_argument(
        "--weights", metavar="FORMAT", help="as if the weights were converted to this format"
    )
    parser.add_argument("--state", choices=("float32", "bfloat16"), default="float32")
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. A model that cannot run here is described all the same."""
    from firstlight.checkpoint.checkpoint import open_checkpoint
    from firstlight.checkpoint.resolve import resolve_model

    checkpoint = open_checkpoint(
        resolve_model(arguments.model, endpoint=arguments.endpoint, headers_only=True)
    )
    report = _files(checkpoint) | _model(checkpoint, arguments)
    if arguments.digest:
        report["digests"] = dict(_digests(checkpoint.files))
    print(json.dumps(report, ensure_ascii=False) if arguments.json else _text(report))
    return 0


def _files(checkpoint: Checkpoint) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        formats[tensor.format] += tensor.nbytes
    return {
        "location": str(checkpoint.location),
        "layout": checkpoint.kind,
        "files": len(checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "bytes": sum(formats.values()),
        "parameters": sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "formats": dict(formats.most_common()),
        "licence": checkpoint.licence,
    }


def _model(checkpoint: Checkpoint, arguments: argparse.Namespace) -> dict[str, Any]:
    from firstlight.errors import CheckpointError, UnsupportedModelError
    from firstlight.formats.registry import get_format
    from firstlight.model.families.registry import make_spec

    try:
        spec = make_spec(checkpoint)
    except (CheckpointError, UnsupportedModelError) as error:
        return {"family": None, "runs": False, "why": str(error)}
    target = get_format(arguments.weights) if arguments.weights else None
    windows = [layer.attention.window for layer in spec.layers]
    first = spec.layers[0].attention
    return {
        "family": spec.family,
        "layers": len(spec.layers),
        "sliding_layers": sum(window is not None for window in windows),
        "sliding_window": next((window for window in windows if window is not None), None),
        "hidden_size": spec.hidden_size,
        "heads": first.heads,
        "key_value_heads": first.key_value_heads,
        "head_size": first.head_size,
        "vocabulary_size": spec.vocabulary_size,
        "context_length": spec.context_length,
        "tied_embeddings": spec.tied,
        "model_parameters": sum(prod(source.shape) for source in spec.sources()),
        **_memory(checkpoint, spec, target, arguments.state),
        **_run_here(checkpoint, spec, target, arguments),
    }


def _memory(
    checkpoint: Checkpoint, spec: ModelSpec, target: Format | None, state: str
) -> dict[str, Any]:
    from firstlight.engine.memory_plan import plan_memory, state_bytes_per_token

    lengths = [length for length in _CONTEXTS if length < spec.context_length]
    plans = [
        plan_memory(spec, checkpoint, length, target, state)
        for length in [*lengths, spec.context_length]
    ]
    return {
        "state_bytes_per_token": state_bytes_per_token(spec, state),
        "memory": [_plan_values(plan) for plan in plans],
    }


def _plan_values(plan: MemoryPlan) -> dict[str, int]:
    return {
        "context_length": plan.context_length,
        "weights": plan.weights,
        "state": plan.state,
        "activations": plan.activations,
        "total": plan.total,
    }


def _run_here(
    checkpoint: Checkpoint, spec: ModelSpec, target: Format | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    from firstlight.backends import open_device
    from firstlight.errors import InsufficientMemoryError
    from firstlight.host.memory import available_memory
    from firstlight.loading import memory_plan

    backend = open_device(arguments.device)
    matrices = {
        target.name if target is not None else checkpoint.tensors[source.name].format
        for source in spec.sources()
        if len(source.shape) > 1
    }
    slow = sorted(matrices - backend.fast_formats())
    here: dict[str, Any] = {
        "device": backend.name,
        "available_memory": available_memory(),
        "formats_without_kernel": slow,
    }
    try:
        plan = memory_plan(checkpoint, spec, target, state=arguments.state)
    except InsufficientMemoryError as error:
        return {**here, "runs": False, "why": str(error)}
    how = f"on {backend.name}, with a context of {plan.context_length:,} tokens"
    if slow:
        how += f"; products with {', '.join(slow)} run as their definition, slowly"
    return {**here, "runs": True, "how": how, "context_length_here": plan.context_length}


def _digests(files: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    from firstlight.progress import progress

    with progress("Hashing", total=sum(path.stat().st_size for path in files)) as advance:
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    advance(len(block))
            yield path.name, digest.hexdigest()


def _text(report: dict[str, Any]) -> str:
    from firstlight.engine.memory_plan import gibibytes

    shares = ", ".join(
        f"{name} {size / max(1, report['bytes']):.0%}" for name, size in report["formats"].items()
    )
    rows = [
        ("model", report["location"]),
        ("family", report["family"] or "unknown"),
        ("files", f"{report['files']} ({report['layout']}), {gibibytes(report['bytes'])}"),
        ("parameters", f"{report['parameters']:,} in {report['tensors']} tensors"),
        ("weights", shares),
        ("licence", report["licence"] or "not stated in the files"),
    ]
    if report["family"]:
        rows += _architecture(report)
    lines = [f"{name:<12}{value}" for name, value in rows]
    if report["family"]:
        lines += ["", *_memory_table(report)]
    verdict = f"yes, {report['how']}" if report["runs"] else f"no. {report['why']}"
    lines += ["", f"{'runs here':<12}{verdict}"]
    for name, digest in report.get("digests", {}).items():
        lines.append(f"{'sha256':<12}{digest}  {name}")
    return "\n".join(lines)


def _architecture(report: dict[str, Any]) -> list[tuple[str, str]]:
    layers = str(report["layers"])
    if report["sliding_layers"]:
        layers += (
            f", {report['sliding_layers']} of them with a window of {report['sliding_window']}"
        )
    heads = f"{report['heads']} of {report['head_size']}"
    if report["key_value_heads"] != report["heads"]:
        heads += f", {report['key_value_heads']} for keys and values"
    tied = ", tied to the output head" if report["tied_embeddings"] else ""
    return [
        ("layers", layers),
        ("heads", heads),
        ("width", f"{report['hidden_size']:,}"),
        ("vocabulary", f"{report['vocabulary_size']:,}{tied}"),
        ("context", f"{report['context_length']:,} tokens"),
    ]


def _memory_table(report: dict[str, Any]) -> list[str]:
    from firstlight.engine.memory_plan import gibibytes

    lines = [f"{'memory at':<12}{'weights':>12}{'state':>12}{'in all':>12}"]
    for plan in report["memory"]:
        lines.append(
            f"{plan['context_length']:<12,}{gibibytes(plan['weights']):>12}"
            f"{gibibytes(plan['state']):>12}{gibibytes(plan['total']):>12}"
        )
    return lines
