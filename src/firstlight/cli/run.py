"""`firstlight run`: continue a prompt, or have it answered."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from firstlight.cli.options import (
    add_hub,
    add_loading,
    add_model,
    add_sampling,
    generation_parameters,
    load_model,
)
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from firstlight.cli.report import Speed
    from firstlight.generation import Generation
    from firstlight.language_model import LanguageModel

_LARGEST_PROMPT_BYTES = 1 << 28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    add_model(parser, optional=True)
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text (default: standard input)"
    )
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=256, help="at most so many tokens (default: 256)"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the text even if the model has a chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message, for chat models")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument(
        "--log-probabilities",
        type=int,
        metavar="COUNT",
        help="with --json: each token's log probability and those of so many likeliest",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but the text")
    parser.add_argument(
        "--verbose", action="store_true", help="show which op ran as what, and what it cost"
    )
    add_loading(parser)
    add_sampling(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the continuation as it comes."""
    from firstlight.progress import set_quiet

    set_quiet(arguments.quiet)
    prompt = _prompt(arguments)
    model = load_model(arguments)
    _say(arguments, _licence_line(arguments.model, model))
    generation = _generate(arguments, model, prompt)
    try:
        _print_text(arguments, prompt, generation)
    finally:
        generation.close()
    speed = _speed(model, generation)
    if arguments.json:
        print(json.dumps(_result(arguments, model, prompt, generation, speed), ensure_ascii=False))
    else:
        _say(arguments, speed.line())
    if arguments.verbose:
        from firstlight.cli.report import usage_table

        print(usage_table(model.backend.usage()), file=sys.stderr)
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError(
            "prompt", "there is none", "Give it as an argument, or through standard input"
        )
    data = sys.stdin.buffer.read(_LARGEST_PROMPT_BYTES + 1)
    if len(data) > _LARGEST_PROMPT_BYTES:
        raise RequestError(
            "standard input", f"is over {_LARGEST_PROMPT_BYTES >> 20} MiB", "Give a shorter prompt"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RequestError("standard input", f"is not UTF-8: {error}", "Convert it first") from None
    # A shell's last newline is not part of what the user wrote.
    return text.removesuffix("\n").removesuffix("\r")


def _generate(arguments: argparse.Namespace, model: LanguageModel, prompt: str) -> Generation:
    parameters = generation_parameters(arguments)
    parameters["log_probabilities"] = arguments.log_probabilities
    templated = model.tokenizer is not None and model.tokenizer.chat_template is not None
    if arguments.raw or not templated:
        if arguments.system is not None:
            raise RequestError(
                "--system", "needs a model with a chat template, and no --raw", "Leave it out"
            )
        return model.generate(prompt, **parameters)
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return model.chat(messages, **parameters)


def _print_text(arguments: argparse.Namespace, prompt: str, generation: Generation) -> None:
    if arguments.json:
        _ = generation.text
        return
    if sys.stdout.isatty() and not arguments.quiet:
        print(f"\x1b[2m{prompt}\x1b[0m", end="", flush=True)
    for piece in generation:
        print(piece.text, end="", flush=True)
    print()


def _speed(model: LanguageModel, generation: Generation) -> Speed:
    from firstlight.cli.report import measure

    ceilings = model.backend.known_ceilings()
    bandwidth = None if ceilings is None else ceilings.bandwidth_bytes_per_second
    return measure(model, generation, bandwidth)


def _result(
    arguments: argparse.Namespace,
    model: LanguageModel,
    prompt: str,
    generation: Generation,
    speed: Speed,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": arguments.model,
        "family": model.spec.family,
        "device": model.backend.name,
        "licence": model.checkpoint.licence,
        "prompt": prompt,
        "prompt_token_ids": generation.prompt_ids,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "speed": speed.values(),
    }
    if arguments.log_probabilities is not None:
        result["log_probabilities"] = [
            {
                "token_id": piece.token_id,
                "log_probability": piece.log_probability,
                "likeliest": [
                    {"token_id": other.token_id, "log_probability": other.log_probability}
                    for other in piece.alternatives
                ],
            }
            for piece in generation
            if piece.token_id is not None
        ]
    if arguments.verbose:
        from firstlight.cli.report import usage_rows

        result["ops"] = usage_rows(model.backend.usage())
    return result


def _licence_line(name: str, model: LanguageModel) -> str:
    if name == "demo":
        from firstlight.checkpoint.demo import demo_licence

        return demo_licence()
    return f"Licence: {model.checkpoint.licence}" if model.checkpoint.licence else ""


def _say(arguments: argparse.Namespace, line: str) -> None:
    """A remark for the person who watches; never among the output."""
    if line and not arguments.quiet and (sys.stderr.isatty() or arguments.verbose):
        print(f"\x1b[2m{line}\x1b[0m" if sys.stderr.isatty() else line, file=sys.stderr)
