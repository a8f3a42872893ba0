"""llama.cpp, by its own llama-bench and llama-batched-bench."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

CONTEXT = 16
PROMPTS = 3


class LlamaCpp:
    """The programs in one directory (`-DGGML_NATIVE=ON`, release build, is what to compare with).

    Args:
        directory: where llama-bench and llama-batched-bench are.
        threads: as many as firstlight uses.
    """

    name = "llama.cpp"

    def __init__(self, directory: Path, threads: int) -> None:
        self._directory = directory
        self._threads = threads

    def measure(self, model: Path, tasks: list[tuple[str, int]]) -> dict[str, Any]:
        """Speeds in tokens per second by "kind number", for the tasks that it can do."""
        speeds: dict[str, float] = {}
        for kind, number in tasks:
            if kind == "prefill":
                speeds[f"prefill {number}"] = self._bench(
                    model, "-p", number, "-n", 0, times=PROMPTS
                )
            elif kind == "long":
                speeds[f"long {number}"] = self._bench(model, "-p", 0, "-n", 12, "-d", number)
            elif kind == "start":
                speeds["start 1"] = 1 / self._start(model)
            elif number == 1:
                speeds["decode 1"] = self._bench(model, "-p", 0, "-n", 24, "-d", CONTEXT)
        batches = [number for kind, number in tasks if kind == "decode" and number > 1]
        return {"speeds": speeds | self._batched(model, batches)}

    def _bench(self, model: Path, *shape: object, times: int = 1) -> float:
        """Tokens per second, by the median of some times after one that warms it up."""
        common = ("-m", model, "-t", self._threads, "-r", times, "-fa", 1, "-o", "json")
        (result,) = json.loads(_run(self._directory / "llama-bench", *common, *shape))
        return statistics.median(map(float, result["samples_ts"]))

    def _start(self, model: Path) -> float:
        """Seconds of a whole process that loads the model and makes one token."""
        prompt = ("-p", "a", "-n", 1, "-c", 512, "-no-cnv", "--no-warmup")
        started = time.perf_counter()
        _run(self._directory / "llama-completion", "-m", model, "-t", self._threads, *prompt)
        return time.perf_counter() - started

    def _batched(self, model: Path, batches: list[int]) -> dict[str, float]:
        if not batches:
            return {}
        # Separate caches for the sequences (-no-kvu) are the faster of its two ways.
        sizes = ("-c", 128 * max(batches), "-b", 2048, "-ub", 512, "-npp", CONTEXT, "-ntg", 24)
        common = ("-m", model, "-t", self._threads, "-fa", "on", "-no-kvu")
        counts = ("-npl", ",".join(map(str, batches)), "--output-format", "jsonl")
        output = _run(self._directory / "llama-batched-bench", *common, *sizes, *counts)
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return {f"decode {row['pl']}": float(row["speed_tg"]) for row in rows}


def _run(program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    # With random weights it says what need not be UTF-8.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"{program.name} failed: {done.stderr.strip()[-400:]}")
    return done.stdout
