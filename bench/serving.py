"""Servers under load, side by side: python bench/serving.py --model DIRECTORY --output STEM ...

Starts firstlight's server and each peer that is given, one after the other in every round, sends
each the same requests at several concurrencies, and writes figures and a table. Prompts are random
token ids and all different; answers have a fixed length. A run that was interrupted goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import Command, OpenVinoPipeline, firstlight_server, llama_server, vllm_server

from firstlight import __version__
from firstlight.benchmark.completions_client import CompletionsClient
from firstlight.benchmark.load import Load, LoadResult, run_load, summarise
from firstlight.benchmark.prompts import Prompt, token_prompts
from firstlight.host.cache import write_atomically
from firstlight.host.processor import processor, usable_cores
from firstlight.progress import progress

OWN = "firstlight"


def main() -> None:
    arguments = _arguments()
    engines = _engines(arguments)
    result = _begin(arguments)
    rounds = result["rounds"]
    todo = [
        (number, name)
        for number in range(arguments.rounds)
        for name in engines
        if number >= len(rounds) or name not in rounds[number]
    ]
    with progress("Measuring", total=len(todo), unit="runs") as advance:
        for number, name in todo:
            if number >= len(rounds):
                rounds.append({})
            rounds[number][name] = _measure(engines[name], arguments, number)
            write_atomically(
                arguments.output.with_suffix(".json"),
                lambda file: file.write(json.dumps(result, indent=1).encode()),
            )
            advance(1)
    text = table(result)
    write_atomically(arguments.output.with_suffix(".md"), lambda file: file.write(text.encode()))
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="what firstlight serves")
    parser.add_argument("--weights", help="convert firstlight's weights to this on loading")
    parser.add_argument("--llama-server", nargs=2, metavar=("PROGRAM", "GGUF"))
    parser.add_argument("--vllm", nargs=2, metavar=("PYTHON", "DIRECTORY"))
    parser.add_argument("--openvino", nargs=2, metavar=("PYTHON", "DIRECTORY"))
    parser.add_argument("--label", required=True, help="model and precision, for the table")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=100_000, help="prompt ids are below this")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    return parser.parse_args()


def _engines(arguments: argparse.Namespace) -> dict[str, Command | OpenVinoPipeline]:
    threads, most = usable_cores(), max(arguments.concurrency)
    length = arguments.prompt_tokens + arguments.output_tokens + 16
    engines: dict[str, Command | OpenVinoPipeline] = {
        OWN: firstlight_server(arguments.model, arguments.weights, length)
    }
    if arguments.llama_server:
        program, model = arguments.llama_server
        engines["llama.cpp"] = llama_server(program, model, length, most, threads)
    if arguments.vllm:
        python, model = arguments.vllm
        engines["vLLM"] = vllm_server(python, model, length, most, threads)
    if arguments.openvino:
        python, model = arguments.openvino
        engines["OpenVINO"] = OpenVinoPipeline(python, model, threads)
    return engines


def _measure(
    engine: Command | OpenVinoPipeline, arguments: argparse.Namespace, number: int
) -> dict[str, Any]:
    """Figures by concurrency of one engine, started for it and ended after it."""
    loads = [
        (Load(max(4, 2 * each), each), _prompts(arguments, each, number))
        for each in arguments.concurrency
    ]
    if isinstance(engine, OpenVinoPipeline):
        found = [summarise(records) for records in engine.run(loads, arguments.output_tokens)]
    else:
        with engine.running() as url:
            found = asyncio.run(_load(url, loads, arguments.output_tokens))
    return {
        str(load.concurrency): {
            **asdict(result),
            "requests_per_second": result.requests_per_second,
            "output_tokens_per_second": result.output_tokens_per_second,
        }
        for (load, _), result in zip(loads, found, strict=True)
    }


def _prompts(arguments: argparse.Namespace, concurrency: int, number: int) -> list[Prompt]:
    seed = 1000 * number + concurrency
    count = max(4, 2 * concurrency)
    return token_prompts(count, arguments.prompt_tokens, arguments.vocabulary, seed)


async def _load(
    url: str, loads: list[tuple[Load, list[Prompt]]], output_tokens: int
) -> list[LoadResult]:
    found = []
    async with CompletionsClient(url, "", [], output_tokens) as client:
        client.model = (await client.models())[0]
        client.prompts = token_prompts(2, 32, 1000, 7)
        await run_load(Load(2, 2), client.send, lambda _: None)  # to warm up
        for load, prompts in loads:
            client.prompts = prompts
            found.append(summarise(await run_load(load, client.send, lambda _: None)))
    return found


def _begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an interrupted run left, or a new record."""
    fresh = {
        "version": __version__,
        "revision": _revision(),
        "processor": processor().name,
        "cores": usable_cores(),
        "system": platform.platform(),
        "date": datetime.now(UTC).date().isoformat(),
        "label": arguments.label,
        "prompt_tokens": arguments.prompt_tokens,
        "output_tokens": arguments.output_tokens,
        "rounds": [],
    }
    path = arguments.output.with_suffix(".json")
    if not path.exists():
        return fresh
    found: dict[str, Any] = json.loads(path.read_text())
    same = all(found.get(key) == fresh[key] for key in fresh if key != "rounds")
    return found if same else fresh


def _revision() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def table(result: dict[str, Any]) -> str:
    """Medians of the rounds as Markdown; ratios are medians of the rounds' own ratios."""
    engines = list(dict.fromkeys(name for one in result["rounds"] for name in one))
    peers = [name for name in engines if name != OWN]
    lines = [
        f"{result['label']}; {result['processor']}, {result['cores']} cores, {result['date']}, "
        f"firstlight {result['version']} ({result['revision']}); requests of "
        f"{result['prompt_tokens']} + {result['output_tokens']} tokens; medians of "
        f"{len(result['rounds'])} rounds.",
        "",
        f"| at once | figure | {' | '.join(engines)} | ratio to the best peer |",
        "| --- | --- |" + " --- |" * (len(engines) + 1),
    ]
    for at_once in next(iter(result["rounds"][0].values())):
        for figure, pick, higher in _FIGURES:
            found = [
                {name: pick(one[name][at_once]) for name in engines if name in one}
                for one in result["rounds"]
            ]
            cells = [at_once, figure]
            for name in engines:
                values = [one[name] for one in found if name in one]
                cells.append(f"{statistics.median(values):.3g}" if values else "")
            ratios = [_ratio(one, peers, higher) for one in found if len(one) > 1]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
            lines.append(f"| {' | '.join(cells)} |")
    failed = sum(
        one[name][at_once]["failed"]
        for one in result["rounds"]
        for name in one
        for at_once in one[name]
    )
    return "\n".join([*lines, "", f"Requests that failed: {failed}."]) + "\n"


_FIGURES = (
    ("output tokens/s", lambda one: one["output_tokens_per_second"], True),
    ("requests/s", lambda one: one["requests_per_second"], True),
    ("first token, p50, s", lambda one: one["first_token"]["p50"], False),
    ("between tokens, p50, s", lambda one: one["between_tokens"]["p50"], False),
)


def _ratio(one: dict[str, float], peers: list[str], higher: bool) -> float:
    """Above one where firstlight is the better."""
    others = [one[name] for name in peers if name in one]
    return one[OWN] / max(others) if higher else min(others) / max(one[OWN], 1e-9)


if __name__ == "__main__":
    main()
