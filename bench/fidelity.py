"""What each way to run a model does to its predictions: the table of docs/fidelity.md.

    python bench/fidelity.py [MODEL.gguf] [--only WORD ...] [--transformers]

Every row is `firstlight.verify.fidelity.measure_fidelity` over the built-in texts, beside the cpu
backend computing exactly with the weights as stored. Rows that no option gives are made here:
ggml's rule for scales in place of the search, and the numpy backend with rounded activations in
place of kernels. --transformers adds the reference implementation in float32 and in bfloat16; it
needs the development environment, and some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.checkpoint.resolve import resolve_model
from firstlight.formats import registry
from firstlight.formats.base import Format
from firstlight.loading import load
from firstlight.ops.rounding import Rounding
from firstlight.verify.divergence import Divergence, total
from firstlight.verify.fidelity import Configuration, measure_fidelity
from firstlight.verify.texts import BUILT_IN

Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration, in a surrounding that changes what it means."""

    label: str
    configuration: Configuration
    within: Patch = contextlib.nullcontext


@contextlib.contextmanager
def ggmls_rule() -> Iterator[None]:
    """Conversion without the search."""
    plain = {name: replace(each, fit=None) for name, each in registry._FORMATS.items()}
    with patch.dict(registry._FORMATS, plain):
        yield


def rounded(rounding: Rounding) -> Patch:
    """The numpy backend with all products' activations rounded so."""

    def rule(format: Format) -> Rounding:
        return rounding

    def within() -> AbstractContextManager[Any]:
        module = "firstlight.backends.numpy.backend.NumpyBackend"
        return patch(module, lambda: NumpyBackend(rule))

    return within


def rows() -> list[Row]:
    """The table, top to bottom."""
    conversions = [
        row
        for name in ("int8", "int4", "q4_0", "q5_0", "q5_1")
        for row in (
            Row(f"weights {name}", Configuration(weights=name, exact=True)),
            Row(
                f"weights {name}, ggml's rule", Configuration(weights=name, exact=True), ggmls_rule
            ),
        )
    ]
    numpy = Configuration("numpy", exact=True)
    return [
        Row("cpu, as it runs", Configuration()),
        Row("cpu, state float32", Configuration(state="float32")),
        Row("numpy (the definitions)", numpy),
        Row("numpy, activations mixed16", numpy, rounded("mixed16")),
        Row("numpy, activations bfloat16", numpy, rounded("bfloat16")),
        Row("weights bf16", Configuration(weights="bf16", exact=True)),
        *conversions,
    ]


def transformers_rows(model: Path) -> Iterator[tuple[str, Divergence]]:
    """transformers in float32 and bfloat16 beside firstlight, and the two beside each other."""
    import torch
    from transformers import AutoModelForCausalLM

    ours = load(model, exact=True, context_length=1024)
    tokens = {name: ours.encode(text) for name, text in BUILT_IN.items()}
    theirs = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32, attn_implementation="eager"
    )

    def logits(ids: list[int]) -> Any:
        with torch.inference_mode():
            return theirs(torch.tensor([ids])).logits[0].float().numpy()

    exact = {name: logits(ids) for name, ids in tokens.items()}
    yield (
        "transformers, float32",
        total(_compared(ours.logits(ids), exact[name], ids) for name, ids in tokens.items()),
    )
    theirs = theirs.to(torch.bfloat16)
    yield (
        "transformers, bfloat16, beside its float32",
        total(_compared(exact[name], logits(ids), ids) for name, ids in tokens.items()),
    )


def _compared(expected: Any, found: Any, ids: list[int]) -> Divergence:
    divergence = Divergence()
    divergence.add(expected, found, ids[1:])
    return divergence


def show(label: str, divergence: Divergence, seconds: float) -> None:
    change = divergence.perplexity / divergence.reference_perplexity - 1
    print(
        f"| {label} | {divergence.mean:.1e} | {divergence.most:.1e} "
        f"| {divergence.agreement:.1%} | {divergence.perplexity:.2f} ({change:+.1%}) "
        f"| {divergence.tokens} tokens, {seconds:.0f} s |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--only", action="append", metavar="WORD", help="rows with this word")
    parser.add_argument("--tokens", type=int, help="at most so many of each text")
    parser.add_argument("--transformers", action="store_true")
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    for row in rows():
        if arguments.only and not any(word in row.label for word in arguments.only):
            continue
        started = time.perf_counter()
        with row.within():
            fidelity = measure_fidelity(model, row.configuration, tokens=arguments.tokens)
        show(row.label, fidelity.total, time.perf_counter() - started)
    if arguments.transformers:
        started = time.perf_counter()
        for label, divergence in transformers_rows(model):
            show(label, divergence, time.perf_counter() - started)


if __name__ == "__main__":
    main()
