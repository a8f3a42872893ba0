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
from firstlight.benchmark.step_cost import step_cost
from firstlight.engine.engine import PAGE_TOKENS, Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Sequence
from firstlight.language_model import LanguageModel
from firstlight.tuning.workload import Workload, make_batch, make_state, pages_of

CONTEXT = 16
STEPS = 24
PROMPTS = 3
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
    cost = step_cost(model)
    result |= {
        "weight_bytes": cost.weight_bytes,
        "operations_a_token": {"inner": cost.inner_operations, "head": cost.head_operations},
        "state_bytes_a_token": cost.state_bytes,
        "experts": cost.experts,
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
    """Tokens per second from a prompt to its first token, by the median of some prompts."""
    engine = _engine(model, tokens + 8, 1)
    _run(engine, _add(engine, _random_ids(model, 32, PROMPTS), 1))
    seconds = []
    for seed in range(PROMPTS):
        sequence = _add(engine, _random_ids(model, tokens, seed), 1)
        started = time.perf_counter()
        _run(engine, sequence)
        seconds.append(time.perf_counter() - started)
    return tokens / statistics.median(seconds)


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
    decoder, dtype = model.engine.decoder, model.engine.state_dtype
    workload = Workload("long", 1, 1, context, 1.0)
    pages = pages_of(workload, PAGE_TOKENS)
    state = make_state(decoder, model.backend, pages, PAGE_TOKENS, dtype)
    batch = make_batch(decoder, workload, PAGE_TOKENS)
    seconds = []
    for _ in range(LONG_STEPS):
        started = time.perf_counter()
        model.backend.download(decoder.step(batch, state))
        seconds.append(time.perf_counter() - started)
    return 1 / statistics.median(seconds[1:])


def _median_step(engine: Engine, steps: int) -> float:
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
