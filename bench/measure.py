"""One process of firstlight, timed: python bench/measure.py MODEL TASKS, prints one JSON line.

TASKS is a JSON list of [kind, number]: ["prefill", tokens], ["decode", sequences] (each after
CONTEXT tokens), ["long", tokens] (one sequence after so many). Speeds are tokens per second; what a
step and a token need at least stands beside them. ["start", 1] alone loads the model, makes one
token and ends: the caller times the process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np

import firstlight
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Sequence
from firstlight.language_model import LanguageModel

CONTEXT = 16
STEPS = 24
LONG_STEPS = 12


def main() -> None:
    path, tasks = sys.argv[1], json.loads(sys.argv[2])
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    started = time.perf_counter()
    model = firstlight.load(path, context_length=512, **options)
    if tasks[0][0] == "start":
        print(model.generate([1, 2, 3], max_tokens=1, ignore_end=True).token_ids)
        return
    result: dict[str, Any] = {"load_seconds": time.perf_counter() - started, "speeds": {}}
    for kind, number in tasks:
        speed = {"prefill": _prefill, "decode": _decode, "long": _long}[kind](model, number)
        result["speeds"][f"{kind} {number}"] = speed
    result |= {
        "weight_bytes": _weight_bytes(model),
        "operations_a_token": _operations(model),
        "state_bytes_a_token": _state_bytes(model),
        "level": getattr(model.backend, "level", ""),
    }
    print(json.dumps(result))


def _engine(model: LanguageModel, context: int, sequences: int, budget: int = 512) -> Engine:
    decoder, dtype = model.engine.decoder, model.engine.state_dtype
    return Engine(decoder, context, sequences, budget, dtype)


def _random_ids(model: LanguageModel, count: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    ids: list[int] = generator.integers(0, model.spec.vocabulary_size, count).tolist()
    return ids


def _add(engine: Engine, ids: list[int], tokens: int) -> Sequence:
    return engine.add(ids, SamplingParameters(temperature=0.0), StopConditions(max_tokens=tokens))


def _prefill(model: LanguageModel, tokens: int) -> float:
    """Tokens per second from a prompt to its first token."""
    engine = _engine(model, tokens + 8, 1)
    _run(engine, _add(engine, _random_ids(model, 32, 1), 1))
    sequence = _add(engine, _random_ids(model, tokens, 0), 1)
    started = time.perf_counter()
    _run(engine, sequence)
    return tokens / (time.perf_counter() - started)


def _run(engine: Engine, sequence: Sequence) -> None:
    while sequence.finish is None:
        engine.step()


def _decode(model: LanguageModel, sequences: int) -> float:
    """Tokens per second of all sequences together, by the median step."""
    engine = _engine(model, CONTEXT + STEPS + 8, sequences)
    added = [_add(engine, _random_ids(model, CONTEXT, i), STEPS + 4) for i in range(sequences)]
    while any(not sequence.output_ids for sequence in added):
        engine.step()
    return sequences / _median_step(engine, STEPS)


def _long(model: LanguageModel, context: int) -> float:
    """Tokens per second after a long context. Its state is random: computing it takes minutes,
    and the time of a step does not depend on its values."""
    engine = _engine(model, context + LONG_STEPS + 8, 1)
    generator = np.random.default_rng(0)
    for streams in engine._state:
        for pages in streams:
            for page in pages:
                values = 0.5 * generator.standard_normal(page.shape, dtype=np.float32)
                page[...] = values if page.dtype == np.float32 else values.view(np.uint32) >> 16
    sequence = _add(engine, _random_ids(model, context + 1, 0), LONG_STEPS + 4)
    for start in range(0, context, 512):
        engine.pages.extend(sequence.pages, min(context, start + 512))
        engine.pages.slide(sequence.pages, min(context, start + 512))
    sequence.computed = context
    engine.step()
    return 1 / _median_step(engine, LONG_STEPS)


def _median_step(engine: Engine, steps: int) -> float:
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _matrices(model: LanguageModel) -> list[Any]:
    """The matrices that a token is multiplied with."""
    sources = {source for source in model.spec.sources() if len(source.shape) == 2}
    if not model.spec.tied:
        sources.discard(model.spec.embedding)
    return [model.engine.decoder.weights[source] for source in sources]


def _weight_bytes(model: LanguageModel) -> int:
    return sum(int(matrix.nbytes) for matrix in _matrices(model))


def _operations(model: LanguageModel) -> dict[str, int]:
    """Of the products with weights: of a token within a prompt, and of the logits on top."""
    head = 2 * int(np.prod(model.engine.decoder.weights[model.spec.head.weight].shape))
    every = sum(2 * int(np.prod(matrix.shape)) for matrix in _matrices(model))
    return {"inner": every - head, "head": head}


def _state_bytes(model: LanguageModel) -> int:
    """Bytes of keys and values that one token of context adds, over all layers."""
    return sum(int(pages[0, 0].nbytes) for streams in model.engine._state for pages in streams)


if __name__ == "__main__":
    main()
