"""`firstlight bench`: how fast a model is here, or a server anywhere."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from firstlight.cli.options import add_hub, add_loading, load_model
from firstlight.cli.terminal import harmless, json_text
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from firstlight.benchmark.load import Load, LoadResult

_CONCURRENCIES = "1,8,16,32"
_PREFILLS = "512"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    parser.epilog = (
        "Examples: firstlight bench demo; "
        "firstlight bench --url http://127.0.0.1:8000/v1 --concurrency 1,8,32; "
        "firstlight bench --url http://127.0.0.1:8000/v1 --rate 4 --requests 200. "
        "Prompts are random and all different; the key in OPENAI_API_KEY is sent to --url."
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a model to load (default: demo); with --url, its name there (default: the first)",
    )
    parser.add_argument("--url", metavar="URL", help="measure the OpenAI-compatible server there")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    group = parser.add_argument_group("load")
    group.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="COUNT", help="(default: 128)"
    )
    group.add_argument(
        "--output-tokens", type=int, default=64, metavar="COUNT", help="(default: 64)"
    )
    group.add_argument(
        "--concurrency",
        type=_numbers,
        metavar="N,N,...",
        help=f"requests at once; one measurement each (default: {_CONCURRENCIES})",
    )
    group.add_argument(
        "--requests",
        type=int,
        metavar="COUNT",
        help="requests a measurement (default: twice the concurrency, at least 4; 100 with --rate)",
    )
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    one = parser.add_argument_group("one model")
    one.add_argument(
        "--prefill",
        type=_numbers,
        default=_numbers(_PREFILLS),
        metavar="N,N,...",
        help=f"prompt lengths to measure (default: {_PREFILLS})",
    )
    one.add_argument("--repetitions", type=int, default=3, metavar="COUNT", help="(default: 3)")
    server = parser.add_argument_group("a server, with --url")
    server.add_argument(
        "--rate",
        type=float,
        metavar="PER_SECOND",
        help="requests arrive at random at this rate, whether or not others have ended (Poisson)",
    )
    server.add_argument("--chat", action="store_true", help="use /chat/completions")
    server.add_argument(
        "--token-ids",
        type=int,
        metavar="VOCABULARY",
        help="send prompts as random ids below this, for exact lengths (default: common words)",
    )
    server.add_argument(
        "--stop-at-end",
        action="store_true",
        help="let the model end its answers (default: ask for ignore_eos)",
    )
    add_loading(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    from firstlight.progress import set_quiet

    set_quiet(arguments.quiet)
    for name in ("prompt_tokens", "output_tokens", "repetitions", "requests"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise RequestError(
                f"--{name.replace('_', '-')}", f"is {value}", "Give a whole number from 1"
            )
    return _run_server(arguments) if arguments.url else _run_model(arguments)


def _run_model(arguments: argparse.Namespace) -> int:
    from firstlight.benchmark.model_speed import ModelBenchmark
    from firstlight.cli.bench_tables import load_table, speed_table
    from firstlight.progress import progress

    for name in ("rate", "chat", "token_ids", "stop_at_end"):
        if getattr(arguments, name):
            raise RequestError(
                f"--{name.replace('_', '-')}", "is for a server", "Give --url, or leave it out"
            )
    arguments.model = arguments.model or "demo"
    concurrencies = arguments.concurrency or _numbers(_CONCURRENCIES)
    longest = max(*arguments.prefill, arguments.prompt_tokens + arguments.output_tokens)
    if arguments.context is None:
        arguments.context = longest + 1
    # What the model computes is measured, not how much of it could be left out.
    model = load_model(
        arguments,
        "ids",
        sequences=max(concurrencies),
        prefix_caching=False,
        speculation="off",
    )
    ceilings = model.backend.measure_ceilings()
    requests = {each: arguments.requests or max(4, 2 * each) for each in concurrencies}
    total = arguments.repetitions * (len(arguments.prefill) + 1) + sum(requests.values())
    with progress("Measuring", total=total, unit="runs") as advance:
        benchmark = ModelBenchmark(model, ceilings, advance)
        benchmark.warm_up()
        speeds = [benchmark.prefill(tokens, arguments.repetitions) for tokens in arguments.prefill]
        speeds.append(
            benchmark.decode(
                arguments.prompt_tokens, arguments.output_tokens, arguments.repetitions
            )
        )
        found = [
            benchmark.throughput(
                each, requests[each], arguments.prompt_tokens, arguments.output_tokens
            )
            for each in concurrencies
        ]
    if arguments.json:
        values = {
            "model": arguments.model,
            "device": model.backend.name,
            "ceilings": asdict(ceilings),
            "prompt_tokens": arguments.prompt_tokens,
            "output_tokens": arguments.output_tokens,
            "speeds": [asdict(each) for each in speeds],
            "throughput": [
                {
                    "concurrency": each.concurrency,
                    **_values(each.result),
                    "ceiling_share": each.ceiling_share,
                }
                for each in found
            ],
        }
        print(json_text(values))
    else:
        bandwidth = ceilings.bandwidth_bytes_per_second / 1e9
        peaks = ", ".join(
            f"{dtype} {value / 1e9:.0f} GOP/s"
            for dtype, value in ceilings.matrix_operations_per_second.items()
        )
        print(harmless(f"{arguments.model} on {model.backend.name} ({ceilings.device})"))
        print(f"ceilings, measured now: memory {bandwidth:.1f} GB/s, {peaks}\n")
        print(speed_table(speeds))
        print(
            f"\nrequests of {arguments.prompt_tokens} + {arguments.output_tokens} tokens, "
            "waits in ms\n"
        )
        print(
            load_table(
                [each.result for each in found], [str(each.concurrency) for each in found], found
            )
        )
    return 0


def _run_server(arguments: argparse.Namespace) -> int:
    import asyncio

    from firstlight.cli.bench_tables import load_table

    found, name = asyncio.run(_measure_server(arguments))
    results = [result for _, result in found]
    if arguments.json:
        values = {
            "url": arguments.url,
            "model": name,
            "prompt_tokens": arguments.prompt_tokens,
            "output_tokens": arguments.output_tokens,
            "loads": [{**asdict(load), **_values(result)} for load, result in found],
        }
        print(json_text(values))
    else:
        print(harmless(f"{name} at {arguments.url}"))
        print(
            f"requests of about {arguments.prompt_tokens} + {arguments.output_tokens} tokens, "
            "waits in ms\n"
        )
        labels = [
            f"{load.rate:g}/s" if load.rate is not None else str(load.concurrency)
            for load, _ in found
        ]
        print(load_table(results, labels))
        for message, count in sorted(
            (item for result in results for item in result.errors.items()),
            key=lambda item: -item[1],
        ):
            print(harmless(f"{count} failed: {message}"), file=sys.stderr)
    return 1 if any(result.failed for result in results) else 0


async def _measure_server(
    arguments: argparse.Namespace,
) -> tuple[list[tuple[Load, LoadResult]], str]:
    from firstlight.benchmark.completions_client import CompletionsClient
    from firstlight.benchmark.load import run_load, summarise
    from firstlight.benchmark.prompts import token_prompts, word_prompts
    from firstlight.progress import progress

    if arguments.chat and arguments.token_ids:
        raise RequestError("--token-ids", "a chat takes text only", "Leave out one of them")
    loads = _loads(arguments)
    total = sum(load.requests for load in loads)
    if arguments.token_ids:
        prompts = token_prompts(total, arguments.prompt_tokens, arguments.token_ids, arguments.seed)
    else:
        prompts = word_prompts(total, arguments.prompt_tokens, arguments.seed)
    client = CompletionsClient(
        arguments.url,
        arguments.model or "",
        [],
        arguments.output_tokens,
        chat=arguments.chat,
        ignore_end=not arguments.stop_at_end,
        api_key=os.environ.get("OPENAI_API_KEY", ""),
    )
    found = []
    async with client:
        if not client.model:
            names = await client.models()
            if not names:
                raise RequestError(arguments.url, "offers no model", "Name one")
            client.model = names[0]
        with progress("Measuring", total=total, unit="requests") as advance:
            for load in loads:
                client.prompts, prompts = prompts[: load.requests], prompts[load.requests :]
                records = await run_load(load, client.send, advance)
                found.append((load, summarise(records)))
    return found, client.model


def _loads(arguments: argparse.Namespace) -> list[Load]:
    from firstlight.benchmark.load import Load

    if arguments.rate is not None:
        limits = arguments.concurrency or [None]
        requests = arguments.requests or 100
        return [Load(requests, limit, arguments.rate, arguments.seed) for limit in limits]
    concurrencies = arguments.concurrency or _numbers(_CONCURRENCIES)
    return [Load(arguments.requests or max(4, 2 * each), each) for each in concurrencies]


def _values(result: LoadResult) -> dict[str, Any]:
    return {
        **asdict(result),
        "requests_per_second": result.requests_per_second,
        "output_tokens_per_second": result.output_tokens_per_second,
    }


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers from 1")
    return found
