"""`firstlight inspect`: what a model is and whether it runs here, from headers alone."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.cli.options import add_hub, add_model, add_state
from firstlight.cli.terminal import harmless, json_text

if TYPE_CHECKING:
    from firstlight.backends.base import Backend
    from firstlight.checkpoint.checkpoint import Checkpoint
    from firstlight.checkpoint.stand_in import StandIn
    from firstlight.engine.memory_plan import MemoryPlan
    from firstlight.formats.base import Format
    from firstlight.model.attention_spec import AttentionSpec
    from firstlight.model.spec import ModelSpec

_CONTEXTS = (2048, 8192, 32768, 131072, 1048576)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`."""
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--digest", action="store_true", help="add the SHA-256 of each file of weights"
    )
    parser.add_argument("--device", default="cpu", help="chip that it would run on (default: cpu)")
    parser.add_argument(
        "--weights", metavar="FORMAT", help="as if the weights were converted to this format"
    )
    add_state(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. A sound model that cannot run here is described all the same."""
    from firstlight.backends import open_device
    from firstlight.checkpoint.checkpoint import open_checkpoint
    from firstlight.checkpoint.resolve import resolve_model
    from firstlight.cli.inspect_text import report_text
    from firstlight.formats.registry import conversion_target

    target = conversion_target(arguments.weights)
    backend = open_device(arguments.device)
    checkpoint = open_checkpoint(
        resolve_model(
            arguments.model,
            endpoint=arguments.endpoint,
            update=arguments.update,
            headers_only=True,
        )
    )
    report = _files(checkpoint) | _tokenizer(checkpoint)
    report |= _model(checkpoint, backend, target, arguments.state)
    if arguments.digest:
        report |= _digests(checkpoint)
    print(json_text(report) if arguments.json else harmless(report_text(report)))
    return 0


def _files(checkpoint: Checkpoint) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        formats[tensor.format] += tensor.nbytes
    stand_in = checkpoint.stand_in
    return {
        "location": str(checkpoint.location) if stand_in is None else stand_in.model,
        "headers_from": None if stand_in is None else stand_in.endpoint,
        "layout": checkpoint.kind,
        "files": len(checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "bytes": sum(formats.values()),
        "parameters": sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "formats": dict(formats.most_common()),
        "licence": checkpoint.licence,
    }


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether text can be given, and conversations. One that is there but broken is an error."""
    from firstlight.checkpoint.gguf_metadata import KINDS
    from firstlight.checkpoint.tokenizer_loading import load_tokenizer

    if checkpoint.kind == "gguf":
        present = checkpoint.config.get("tokenizer.ggml.model") in KINDS
    else:
        names = ("tokenizer.json", "tokenizer.model")
        present = any((checkpoint.location / name).exists() for name in names)
    if not present:
        return {"tokenizer_size": None, "chat": False}
    tokenizer = load_tokenizer(checkpoint)
    return {
        "tokenizer_size": tokenizer.vocabulary_size,
        "chat": tokenizer.chat_template is not None,
    }


def _model(
    checkpoint: Checkpoint, backend: Backend, target: Format | None, state: str
) -> dict[str, Any]:
    from firstlight.errors import FormatError, UnsupportedModelError
    from firstlight.loading import check_formats
    from firstlight.model.families.registry import make_spec
    from firstlight.model.stream import state_dtype

    state = state_dtype(state)
    try:
        spec = make_spec(checkpoint)
    except UnsupportedModelError as error:
        return {"family": None, "runs": False, "why": str(error)}
    report = _architecture(spec)
    try:
        check_formats(checkpoint, spec)
    except FormatError as error:
        return {**report, "memory": [], "runs": False, "why": str(error)}
    return {
        **report,
        **_memory(checkpoint, spec, backend, target, state),
        **_run_here(checkpoint, spec, backend, target, state),
    }


def _architecture(spec: ModelSpec) -> dict[str, Any]:
    windows = [layer.attention.window for layer in spec.layers]
    return {
        "family": spec.family,
        "layers": len(spec.layers),
        "sliding_layers": sum(window is not None for window in windows),
        "sliding_window": next((window for window in windows if window is not None), None),
        "hidden_size": spec.hidden_size,
        **_heads(spec.layers[0].attention),
        "vocabulary_size": spec.vocabulary_size,
        "context_length": spec.context_length,
        "tied_embeddings": spec.tied,
        "model_parameters": sum(prod(source.shape) for source in spec.sources()),
        "notes": list(spec.notes),
        **_experts(spec),
    }


def _heads(attention: AttentionSpec) -> dict[str, Any]:
    from firstlight.model.attention_spec import LatentAttentionSpec

    if isinstance(attention, LatentAttentionSpec):
        return {
            "heads": attention.heads,
            "key_value_heads": 1,
            "head_size": attention.plain_size + attention.rope.size,
            "latent_size": attention.latent_size,
            "selected_positions": None if attention.indexer is None else attention.indexer.top_k,
        }
    return {
        "heads": attention.heads,
        "key_value_heads": attention.key_value_heads,
        "head_size": attention.head_size,
        "latent_size": None,
        "selected_positions": None,
    }


def _experts(spec: ModelSpec) -> dict[str, Any]:
    """Of the layers with a mixture of experts, which are alike in every published model."""
    from firstlight.model.feed_forward_spec import ExpertsSpec

    found = [
        layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, ExpertsSpec)
    ]
    if not found:
        return {}
    return {
        "expert_layers": len(found),
        "experts": len(found[0].experts),
        "experts_per_token": found[0].routing.numbers.top_k,
        "shared_expert": found[0].shared is not None,
        "active_parameters": spec.active_parameters(),
    }


def _memory(
    checkpoint: Checkpoint, spec: ModelSpec, backend: Backend, target: Format | None, state: str
) -> dict[str, Any]:
    from firstlight.engine.memory_plan import plan_memory, state_bytes_per_token

    lengths = [length for length in _CONTEXTS if length < spec.context_length]
    plans = [
        plan_memory(spec, checkpoint, length, target, state, ops=backend)
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
    checkpoint: Checkpoint, spec: ModelSpec, backend: Backend, target: Format | None, state: str
) -> dict[str, Any]:
    from firstlight.errors import InsufficientMemoryError
    from firstlight.loading import memory_plan
    from firstlight.model.matrices import kept_matrices

    matrices = {kept.format.name for kept in kept_matrices(spec, checkpoint, backend, target)}
    slow = sorted(matrices - backend.fast_formats())
    here: dict[str, Any] = {
        "device": backend.name,
        "available_memory": backend.available_memory(),
        "formats_without_kernel": slow,
    }
    try:
        plan = memory_plan(checkpoint, spec, target, state=state, ops=backend)
    except InsufficientMemoryError as error:
        return {**here, "runs": False, "why": str(error)}
    how = f"on {backend.name}, with a context of {plan.context_length:,} tokens"
    if plan.mapped:
        how += "; memory does not hold its weights, which stay on disk: slowly"
    if slow:
        how += f"; products with {', '.join(slow)} run as their definition, slowly"
    return {**here, "runs": True, "how": how, "context_length_here": plan.context_length}


def _digests(checkpoint: Checkpoint) -> dict[str, Any]:
    """SHA-256 by file name: computed from the files, or of files that are not here as stated."""
    if checkpoint.stand_in is not None:
        return {"digests": _stated_digests(checkpoint.stand_in), "digests_computed": False}
    return {"digests": dict(_computed_digests(checkpoint.files)), "digests_computed": True}


def _stated_digests(stand_in: StandIn) -> dict[str, str]:
    from firstlight.errors import HubError

    for name, digest in stand_in.digests.items():
        if len(digest) != 64:
            raise HubError(
                stand_in.model,
                f"{stand_in.endpoint} states no SHA-256 for {name}",
                "Leave out --digest, or have the model downloaded first by `firstlight run`",
            )
    return dict(stand_in.digests)


def _computed_digests(files: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    from firstlight.progress import progress

    with progress("Hashing", total=sum(path.stat().st_size for path in files)) as advance:
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    advance(len(block))
            yield path.name, digest.hexdigest()
