"""What firstlight's server costs beside its engines: python bench/front.py [--model demo] ...

Starts the server, sends it requests at a fixed concurrency, and reports the processor time of its
own process for each token, as a share of what the machine's cores could do meanwhile; and its
memory before and after. With --requests 5000 and short requests it shows whether memory stays flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

import psutil
from servers import firstlight_server

from firstlight.benchmark.completions_client import CompletionsClient
from firstlight.benchmark.load import Load, LoadResult, run_load, summarise
from firstlight.benchmark.prompts import token_prompts
from firstlight.progress import progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=200_000)
    arguments = parser.parse_args()
    length = arguments.prompt_tokens + arguments.output_tokens + 16
    with firstlight_server(arguments.model, None, length).running() as url:
        result = asyncio.run(_measure(arguments, url))
    print(json.dumps(result, indent=1))


@dataclass(frozen=True)
class _Use:
    """Of the server's processes now: seconds of processor time, bytes of memory."""

    front_seconds: float
    front_bytes: int
    replica_seconds: float
    replica_bytes: int


def _use() -> _Use:
    (front,) = [
        child
        for child in psutil.Process(os.getpid()).children()
        if "serve" in " ".join(child.cmdline())
    ]
    replicas = front.children(recursive=True)
    return _Use(
        _seconds(front),
        front.memory_info().rss,
        sum(map(_seconds, replicas)),
        sum(each.memory_info().rss for each in replicas),
    )


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _measure(arguments: argparse.Namespace, url: str) -> dict[str, Any]:
    async with CompletionsClient(url, "", [], arguments.output_tokens) as client:
        client.model = (await client.models())[0]
        warm = 2 * arguments.concurrency  # connections, caches, and the pool of pages
        await _load(arguments, client, warm, 1)
        before = _use()
        result = await _load(arguments, client, arguments.requests, 2)
        after = _use()
    front = after.front_seconds - before.front_seconds
    return {
        "requests": result.requests,
        "failed": result.failed,
        "errors": result.errors,
        "seconds": round(result.seconds, 2),
        "output_tokens": result.output_tokens,
        "output_tokens_per_second": round(result.output_tokens_per_second, 1),
        "between_tokens_p50_ms": round(1e3 * result.between_tokens.p50, 1),
        "front_microseconds_a_token": round(1e6 * front / max(result.output_tokens, 1), 1),
        "front_share_of_all_cores": round(front / result.seconds / (os.cpu_count() or 1), 4),
        "front_mib": [round(each.front_bytes / 2**20, 1) for each in (before, after)],
        "replica_mib": [round(each.replica_bytes / 2**20, 1) for each in (before, after)],
    }


async def _load(
    arguments: argparse.Namespace, client: CompletionsClient, requests: int, seed: int
) -> LoadResult:
    client.prompts = token_prompts(requests, arguments.prompt_tokens, arguments.vocabulary, seed)
    with progress("Sending requests", total=requests, unit="requests") as advance:
        load = Load(requests, arguments.concurrency)
        return summarise(await run_load(load, client.send, advance))


if __name__ == "__main__":
    main()
