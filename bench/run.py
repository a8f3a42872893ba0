"""Speed of one model, beside this machine's ceilings and beside llama.cpp, in one run.

    python bench/run.py MODEL.gguf [--runs 3] [--llama-bench PATH] [--output FILE.json]

The engines alternate, and the memory bandwidth is measured before each pair, because a shared
machine's speed drifts by the hour: only what was measured together is compared. firstlight runs
in this process, llama.cpp as its own `llama-bench`, both with the same prompt length, the same
number of new tokens and as many threads as there are cores. Without llama-bench (--llama-bench, or
on PATH) firstlight is measured alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import firstlight
from firstlight.cli.report import measure
from firstlight.host.cache import write_atomically
from firstlight.host.processor import processor, usable_cores
from firstlight.progress import progress

PROMPT_TOKENS = 512
NEW_TOKENS = 64


def main() -> None:
    """Measure, print the table, and write the figures."""
    arguments = _arguments()
    model = firstlight.load(arguments.model)
    peer = arguments.llama_bench or shutil.which("llama-bench")
    rounds: list[dict[str, Any]] = []
    with progress("Measuring", total=arguments.runs, unit="rounds") as advance:
        for _ in range(arguments.runs):
            bandwidth = model.backend.measure_ceilings().bandwidth_bytes_per_second
            one = {"bandwidth": bandwidth, "firstlight": _firstlight(model, bandwidth)}
            if peer is not None:
                one["llama.cpp"] = _llama_bench(peer, model.checkpoint.location)
            rounds.append(one)
            advance(1)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "version": firstlight.__version__,
        "processor": processor().name,
        "cores": usable_cores(),
        "system": platform.platform(),
        "model": Path(model.checkpoint.location).name,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": rounds,
    }
    if arguments.output is not None:
        content = json.dumps(result, indent=1).encode() + b"\n"
        write_atomically(arguments.output, lambda file: file.write(content))
    print(table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--llama-bench", metavar="PATH", help="the peer's program")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def _firstlight(model: firstlight.LanguageModel, bandwidth: float) -> dict[str, float | None]:
    vocabulary = model.spec.vocabulary_size
    prompt = np.random.default_rng(0).integers(0, vocabulary, PROMPT_TOKENS).tolist()
    generation = model.generate(prompt, max_tokens=NEW_TOKENS, ignore_end=True, temperature=0.0)
    speed = measure(model, generation, bandwidth)
    return {
        "prefill": speed.prompt_tokens / speed.prompt_seconds,
        "decode": speed.tokens_per_second,
        "bandwidth_share": speed.bandwidth_share,
    }


def _llama_bench(program: str, model: Path) -> dict[str, float]:
    """Prefill of an empty context, then decoding after as long a prompt as firstlight's."""
    prefill = ("-p", PROMPT_TOKENS, "-n", 0)
    decode = ("-p", 0, "-n", NEW_TOKENS, "-d", PROMPT_TOKENS)
    return {
        kind: _llama_bench_speed(program, model, shape)
        for kind, shape in (("prefill", prefill), ("decode", decode))
    }


def _llama_bench_speed(program: str, model: Path, shape: tuple[object, ...]) -> float:
    common = ("-m", model, "-t", usable_cores(), "-r", 1, "-fa", 1, "-o", "json")
    command = [program, *map(str, (*common, *shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed: {done.stderr.strip()[-400:]}")
    (result,) = json.loads(done.stdout)
    return float(result["avg_ts"])


def table(result: dict[str, Any]) -> str:
    """Medians as Markdown; the ratio is the median of the rounds' own ratios."""
    rounds = result["rounds"]
    lines = [
        f"{result['model']}, {result['processor']}, {result['cores']} cores, {result['date']}, "
        f"median of {len(rounds)} rounds; tokens/s.",
        "",
        "| | firstlight | share of bandwidth | llama.cpp | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, tokens in (("prefill", PROMPT_TOKENS), ("decode", NEW_TOKENS)):
        own = statistics.median(one["firstlight"][kind] for one in rounds)
        share = statistics.median(one["firstlight"]["bandwidth_share"] for one in rounds)
        cells = [f"{kind} {tokens}", f"{own:.1f}", f"{share:.0%}" if kind == "decode" else ""]
        if "llama.cpp" in rounds[0]:
            peer = statistics.median(one["llama.cpp"][kind] for one in rounds)
            ratio = statistics.median(
                one["firstlight"][kind] / one["llama.cpp"][kind] for one in rounds
            )
            cells += [f"{peer:.1f}", f"{ratio:.2f}"]
        else:
            cells += ["not measured", ""]
        lines.append(f"| {' | '.join(cells)} |")
    bandwidth = [one["bandwidth"] / 1e9 for one in rounds]
    lines += ["", f"Memory bandwidth {min(bandwidth):.1f} to {max(bandwidth):.1f} GB/s."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
