"""What tuning a model gains, and how much of it a short tuning reaches.

    python bench/tuning.py MODEL.gguf [--seconds 120 3600] [--rounds 15] [--output FILE.json]

Tunes the model anew with each budget, each into a directory of its own, and then times whole steps
of the decoder, as by default and as each tuning left it, in alternation: a shared machine's speed
drifts by the minute, so that only neighbours are compared. "Reached" is the share of the longest
tuning's gain in speed that a shorter one has: speed / longest's speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import firstlight
from firstlight.host.cache import write_atomically
from firstlight.host.processor import processor, usable_cores
from firstlight.language_model import LanguageModel
from firstlight.tuning.model import tune_model
from firstlight.tuning.store import Store
from firstlight.tuning.workload import WORKLOADS, Workload, make_batch, make_state, pages_of

DEFAULT = "default"
PAGE_TOKENS = 64


def main() -> None:
    """Tune, measure, print the table, and write the figures."""
    arguments = _arguments()
    model = firstlight.load(arguments.model, arguments.device, tune=None)
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, Store] = {}
        tunings: list[dict[str, Any]] = []
        for seconds in sorted(arguments.seconds):
            store = Store(model.backend, Path(folder) / f"{seconds:g}")
            tunings.append(_tune(model, store, seconds))
            stores[f"{seconds:g} s"] = store
        steps = _measure(model, stores, arguments.rounds, arguments.step_seconds)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "version": firstlight.__version__,
        "device": model.backend.device_key(),
        "processor": processor().name,
        "cores": usable_cores(),
        "model": Path(model.checkpoint.location).name,
        "tunings": tunings,
        "steps": steps,
    }
    if arguments.output is not None:
        content = json.dumps(result, indent=1).encode() + b"\n"
        write_atomically(arguments.output, lambda file: file.write(content))
    print(table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, nargs="+", default=[120.0, 3600.0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--step-seconds", type=float, default=0.5, help="time for each measurement of a step"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def _tune(model: LanguageModel, store: Store, seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    for _ in tune_model(model, store, seconds):
        pass
    entries = store.entries.values()
    return {
        "seconds": seconds,
        "took": round(time.perf_counter() - started, 2),
        "shapes": len(entries),
        "decided": sum(entry.decided for entry in entries),
        "changed": {
            f"{entry.op} {' '.join(map(str, entry.shape))}": [str(entry.choice), entry.ratio]
            for entry in entries
            if entry.choice != entry.default
        },
    }


def _measure(
    model: LanguageModel, stores: dict[str, Store], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """step -> tuning -> seconds of one step, in each round."""
    decoder, backend = model.engine.decoder, model.backend
    pages = max(pages_of(step, PAGE_TOKENS) for step in WORKLOADS)
    state = make_state(decoder, backend, pages, PAGE_TOKENS, "float32")
    found: dict[str, dict[str, list[float]]] = {}
    for step in WORKLOADS:
        batch = make_batch(decoder, step, PAGE_TOKENS)

        def run(batch: Any = batch) -> None:
            decoder.step(batch, state)
            backend.synchronize()

        found[step.name] = _alternate(model, stores, run, rounds, seconds)
    return found


def _alternate(
    model: LanguageModel,
    stores: dict[str, Store],
    run: Callable[[], None],
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {DEFAULT: [], **{name: [] for name in stores}}
    run()
    for turn in range(rounds):
        names = list(times)
        # Who comes first changes, for what the one before leaves behind.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _use(model, stores.get(name))
            times[name].append(_best(run, seconds))
    _use(model, None)
    return times


def _use(model: LanguageModel, store: Store | None) -> None:
    for op, shape in model.backend.tuning():
        model.backend.apply_tuning(op, shape, None)
    if store is not None:
        store.apply()


def _best(run: Callable[[], None], seconds: float) -> float:
    """Seconds of the fastest of as many runs as fit."""
    end, best = time.perf_counter() + seconds, float("inf")
    while True:
        started = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= end:
            return best


def table(result: dict[str, Any]) -> str:
    """Medians as Markdown; ratios are medians of the rounds' own ratios."""
    names = [f"{tuning['seconds']:g} s" for tuning in result["tunings"]]
    longest = names[-1]
    header = ["step", "default", *(f"tuned {name}" for name in names)]
    header += [f"{name} reaches" for name in names[:-1]]
    lines = [
        f"{result['model']}, {result['processor']}, {result['cores']} cores, {result['date']}; "
        "tokens/s, medians.",
        "",
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
    ]
    for step in WORKLOADS:
        times = result["steps"][step.name]
        cells = [step.name, f"{_tokens(step) / statistics.median(times[DEFAULT]):.1f}"]
        for name in names:
            gain = _ratio(times[DEFAULT], times[name]) - 1
            cells.append(f"{_tokens(step) / statistics.median(times[name]):.1f} ({gain:+.1%})")
        cells += [f"{_ratio(times[longest], times[name]):.1%}" for name in names[:-1]]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for tuning in result["tunings"]:
        lines.append(
            f"Tuning for at most {tuning['seconds']:g} s took {tuning['took']:g} s: "
            f"{tuning['shapes']} shapes, {tuning['decided']} decided, "
            f"{len(tuning['changed'])} changed."
        )
    return "\n".join(lines)


def _tokens(step: Workload) -> int:
    return step.sequences * step.rows


def _ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


if __name__ == "__main__":
    main()
