"""Speed of firstlight beside this machine's ceilings and beside peers, in one run.

    python bench/run.py [--models NAME ...] [--rounds 3] [--llama-cpp DIRECTORY]
                        [--openvino PYTHON --openvino-models DIRECTORY] [--output STEM]

Engines alternate, each in processes of its own, and the ceilings are measured before each round:
a shared machine's speed drifts by the minute, so only what was measured together is compared, and
a ratio is the median of the rounds' own ratios. With --output the figures go to STEM.json, the
table to STEM.md and the chart to STEM.svg. An interrupted run leaves the rounds that it finished
in STEM.json; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_cpp import LlamaCpp
from openvino_peer import OpenVino
from report import chart, table
from shapes import model_file

from firstlight import __version__
from firstlight.backends import open_device
from firstlight.checkpoint.demo import demo_model
from firstlight.host.cache import cache_directory, write_atomically
from firstlight.host.processor import processor, usable_cores
from firstlight.progress import progress

Tasks = list[tuple[str, int]]

BATCHES: Tasks = [("decode", 1), ("decode", 8), ("decode", 16), ("decode", 32)]
SHORT: Tasks = [("prefill", 512), *BATCHES]

# name -> (shape and format, or None for the real model that a package carries; what is timed).
MODELS: dict[str, tuple[tuple[str, str] | None, Tasks]] = {
    "gemma-3-270m-q4_k_m": (None, [*SHORT, ("prefill", 4096)]),
    "qwen2-0.5b-bf16": (("qwen2-0.5b", "bf16"), [*SHORT, ("prefill", 4096), ("long", 16384)]),
    "qwen2-0.5b-int8": (("qwen2-0.5b", "q8_0"), SHORT),
    "qwen2-0.5b-int4": (("qwen2-0.5b", "q4_0"), SHORT),
    "qwen2-1.5b-bf16": (("qwen2-1.5b", "bf16"), SHORT),
    "qwen2-1.5b-int8": (("qwen2-1.5b", "q8_0"), [*SHORT, ("start", 1)]),
    "qwen2-1.5b-int4": (("qwen2-1.5b", "q4_0"), SHORT),
    "deepseek-v2-lite-int4": (("deepseek-v2-lite", "q4_0"), SHORT),
    "llama-8b-int4": (("llama-8b", "q4_0"), [("prefill", 512), ("decode", 1)]),
}


def main() -> None:
    """Measure, print the table, and write figures, table and chart."""
    arguments = _arguments()
    result = _begin(arguments)
    engines = _engines(arguments)
    left = [
        (number, name)
        for number in range(arguments.rounds)
        for name in arguments.models
        if len(result["models"].get(name, [])) <= number
    ]
    with progress("Measuring", total=len(left) * len(engines), unit="runs") as advance:
        for _, name in left:
            chosen, tasks = MODELS[name]
            path = demo_model() if chosen is None else model_file(*chosen, arguments.directory)
            one: dict[str, Any] = {"ceilings": _ceilings()}
            for engine, measure in engines.items():
                found = measure(name, path, tasks)
                if found is not None:
                    one[engine] = found
                advance(1)
            result["models"].setdefault(name, []).append(one)
            _write(arguments.output, ".json", json.dumps(result, indent=1) + "\n")
    text = table(result)
    _write(arguments.output, ".md", text)
    if arguments.output is not None:
        chart(result, arguments.output.with_suffix(".svg"))
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="DIRECTORY", help="with llama-bench, llama-batched-bench"
    )
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="that has openvino_genai")
    parser.add_argument(
        "--openvino-models", type=Path, metavar="DIRECTORY", help="with NAME-ov-FORMAT in it"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=cache_directory() / "bench",
        help="where models with random weights are kept",
    )
    parser.add_argument("--output", type=Path, metavar="STEM")
    return parser.parse_args()


def _engines(arguments: argparse.Namespace) -> dict[str, Any]:
    """name -> function of (model's name, file, tasks), None where it has no such model."""
    engines: dict[str, Any] = {"firstlight": _firstlight}
    threads = usable_cores()
    if arguments.llama_cpp is not None:
        peer = LlamaCpp(arguments.llama_cpp, threads)
        engines[peer.name] = lambda name, path, tasks: peer.measure(path, tasks)
    if arguments.openvino is not None:
        other = OpenVino(arguments.openvino, arguments.openvino_models, threads)
        engines[other.name] = lambda name, path, tasks: other.measure(name, tasks)
    return engines


def _firstlight(name: str, path: Path, tasks: Tasks) -> dict[str, Any]:
    program = Path(__file__).with_name("measure.py")
    measured: dict[str, Any] = {"speeds": {}}
    steady = [task for task in tasks if task[0] != "start"]
    # An installed firstlight comes with its modules compiled.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for part in (steady, [task for task in tasks if task[0] == "start"]):
        if not part:
            continue
        command = [sys.executable, str(program), str(path), json.dumps(part)]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"firstlight failed on {name}: {done.stderr.strip()[-2000:]}")
        if part is steady:
            measured |= json.loads(done.stdout.splitlines()[-1])
        else:
            measured["speeds"]["start 1"] = 1 / seconds
    return measured


def _ceilings() -> dict[str, Any]:
    found = open_device("cpu").measure_ceilings()
    return {
        "bandwidth": found.bandwidth_bytes_per_second,
        "matrix": found.matrix_operations_per_second,
    }


def _begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an interrupted run left, or a new record."""
    fresh = {
        "version": __version__,
        "processor": processor().name,
        "cores": usable_cores(),
        "system": platform.platform(),
        "date": datetime.now(UTC).date().isoformat(),
        "models": {},
    }
    if arguments.output is None or not arguments.output.with_suffix(".json").exists():
        return fresh
    found: dict[str, Any] = json.loads(arguments.output.with_suffix(".json").read_text())
    same = all(found.get(key) == fresh[key] for key in fresh if key != "models")
    return found if same else fresh


def _write(stem: Path | None, suffix: str, text: str) -> None:
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(stem.with_suffix(suffix), lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
