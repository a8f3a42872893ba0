"""Writes docs/models.md: every family, in every way of storing weights, on every backend.

    python -m tests.models_page

Each family's tiny random model (tests/support/tiny_models.py) is written as published, read by
firstlight, and compared with transformers in float32: in a prompt computed in chunks, after every
token. A cell holds what was measured, or nothing where it cannot be had. And each kernel of each
backend is compared with its op's definition.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats
from firstlight.formats.registry import get_format
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import FAMILIES, make_spec
from firstlight.model.weights import load_weights
from firstlight.progress import progress
from firstlight.verify.conformance import check_kernels
from tests.support.decode import logits
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_gguf import expressible, write_gguf
from tests.support.tiny_models import (
    TINY_MODELS,
    TinyModel,
    prompt,
)

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BACKENDS = ("numpy", "cpu", "torch:cpu")
CHUNK = 37
# Rows that fill the blocks of 32 that weights are converted to.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
WIDE_WHERE_GIVEN = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "o_groups": 2,
}
STORED = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
CONVERTED = {"int8": "q8_0", "int4": "q4_1"}


def main() -> None:
    """Measure all and write the page."""
    backends = [name for name in BACKENDS if _is_here(name)]
    names = [family.name for family in FAMILIES]
    cells: dict[tuple[str, str, str], str] = {}
    with progress("Comparing", total=len(names), unit="families") as advance:
        for name in names:
            for (way, backend), cell in _family(name, backends).items():
                cells[name, way, backend] = cell
            advance(1)
    ways = (*STORED, "GGUF", *CONVERTED)
    page = ["# Models", "", *_INTRODUCTION, ""]
    for backend in backends:
        page += [f"## {backend}", "", f"| family | {' | '.join(ways)} |"]
        page.append("| --- |" + " --- |" * len(ways))
        page += [
            f"| {name} | {' | '.join(cells.get((name, way, backend), '') for way in ways)} |"
            for name in names
        ]
        page.append("")
    page += _kernels(backends)
    PAGE.write_text("\n".join(page) + "\n")


_INTRODUCTION = (
    "Written by `python -m tests.models_page`, which compares a tiny random model of every family",
    "with transformers' implementation, in float32 and after every token of a prompt that is",
    "computed in chunks. f32, bf16, f16, GGUF (f32 within): the largest difference of any logit,",
    "where logits are about 3 and the weights are the same numbers on both sides. int8 and int4",
    "(`--weights`): the mean Kullback-Leibler divergence (nats) from the model before conversion,",
    "which is the rounding of the weights; 64 columns suffer more from it than thousands. `cpu`",
    "runs with `--exact`. An empty cell is not expressible, or not read.",
)


def _is_here(device: str) -> bool:
    try:
        open_device(device)
    except FirstlightError:
        return False
    return True


def _family(name: str, backends: list[str]) -> dict[tuple[str, str], str]:
    """(way, backend) -> what the cell says."""
    tiny = next((model for model in TINY_MODELS if model.family == name), None)
    if tiny is None:
        return {}
    found: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for way, dtype in STORED.items():
            path = write_checkpoint(tiny.build(), folder / way, dtype=dtype)
            wanted = reference_logits(load_reference(path), prompt())
            found |= _differences(way, path, wanted, backends)
        written = expressible(tiny)
        if written is not None:
            original = load_reference(write_checkpoint(written.build(), folder / "original"))
            path = write_gguf(written, original, folder / "model.gguf")
            found |= _differences("GGUF", path, reference_logits(original, prompt()), backends)
        wide = write_checkpoint(_wide(tiny).build(), folder / "wide")
        wanted = reference_logits(load_reference(wide), prompt())
        for way, format in CONVERTED.items():
            for backend in backends:
                logits_found = _logits(wide, backend, format)
                if logits_found is not None:
                    found[way, backend] = f"{_divergence(logits_found, wanted):.0e}"
    return found


def _differences(
    way: str, path: Path, wanted: Floats, backends: list[str]
) -> dict[tuple[str, str], str]:
    found = {(way, backend): _logits(path, backend) for backend in backends}
    return {
        key: f"{np.abs(rows - wanted).max():.0e}" for key, rows in found.items() if rows is not None
    }


def _wide(tiny: TinyModel) -> TinyModel:
    given = {key: value for key, value in WIDE_WHERE_GIVEN.items() if tiny.changes.get(key, 1) != 1}
    return replace(tiny, changes={**tiny.changes, **WIDE, **given})


def _logits(path: Path, backend: str, format: str | None = None) -> Floats | None:
    """After every token of the prompt; None where the checkpoint is refused."""
    try:
        checkpoint = open_checkpoint(path)
        spec = make_spec(checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ops = open_device(backend, exact=True)
        target = None if format is None else get_format(format)
        decoder = Decoder(spec, load_weights(spec, checkpoint, ops, target), ops)
        return logits(decoder, prompt(), CHUNK)
    except FirstlightError:
        return None


def _divergence(found: Floats, wanted: Floats) -> float:
    def logarithms(rows: Floats) -> Any:
        wide = rows.astype(np.float64)
        wide -= wide.max(-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(-1, keepdims=True))

    reference, mine = logarithms(wanted), logarithms(found)
    return float((np.exp(reference) * (reference - mine)).sum(-1).mean())


def _kernels(backends: list[str]) -> list[str]:
    """For each op the cases by which each backend's kernels agree with its definition."""
    counts: dict[str, Counter[str]] = {}
    for name in backends:
        backend = open_device(name)
        for report in check_kernels(backend):
            counts.setdefault(report.op, Counter())[name] += report.passed
    lines = [
        "## Kernels",
        "",
        "Cases in which a backend's kernels agree with the op's definition (docs/architecture.md);",
        "an op without kernels runs as its definition, or as its parts.",
        "",
    ]
    lines += [f"| op | {' | '.join(backends)} |", "| --- |" + " --- |" * len(backends)]
    for op in sorted(counts):
        cells = (str(counts[op][name] or "") for name in backends)
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
