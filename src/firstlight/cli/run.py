"""`firstlight run`: continue a prompt, or have it answered."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from firstlight.cli.input import read_input
from firstlight.cli.options import (
    add_hub,
    add_loading,
    add_model,
    add_sampling,
    add_speculation,
    generation_parameters,
    load_model,
)
from firstlight.cli.terminal import dim, is_terminal, json_text, write_text
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from firstlight.cli.report import Speed
    from firstlight.generation import Generation
    from firstlight.language_model import LanguageModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.epilog = (
        "A model made for chat answers the prompt; a base model, and any with --raw, continues it."
    )
    add_model(parser, optional=True)
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the text (default: standard input)"
    )
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        metavar="COUNT",
        default=256,
        help="at most so many tokens (default: 256)",
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
    add_speculation(parser)
    add_sampling(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the continuation as it comes."""
    from firstlight.progress import set_quiet

    set_quiet(arguments.quiet)
    parameters = _parameters(arguments)
    prompt = _prompt(arguments)
    model = load_model(arguments, "text", speculation=arguments.speculate)
    # Imported here: what it needs has been loaded with the model.
    from firstlight.cli.report import licence_line, usage_table

    _say(arguments, licence_line(arguments.model, model))
    generation = _generate(arguments, model, prompt, parameters)
    try:
        if arguments.json:
            _ = generation.text
        else:
            if is_terminal(sys.stdout) and not arguments.quiet:
                continued = _is_continued(arguments, model)
                print(dim(prompt, sys.stdout), end="" if continued else "\n", flush=True)
            for piece in generation:
                write_text(piece.text)
            print()
    finally:
        generation.close()
    speed = _speed(model, generation)
    if arguments.json:
        print(json_text(_result(arguments, model, prompt, generation, speed)))
    else:
        _say(arguments, speed.line())
    if arguments.verbose:
        print(usage_table(model.backend.usage()), file=sys.stderr)
        for remark in model.backend.remarks():
            print(remark, file=sys.stderr)
    return 0


def _parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.log_probabilities is not None and not arguments.json:
        raise RequestError("--log-probabilities", "is shown with --json only", "Add --json")
    if arguments.raw and arguments.system is not None:
        raise RequestError(
            "--system", "has no place in a text that is continued as it is", "Leave out --raw"
        )
    return {**generation_parameters(arguments), "log_probabilities": arguments.log_probabilities}


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    # An empty input is a script's mistake; "" as an argument asks for a text out of nothing.
    prompt = "" if sys.stdin is None or is_terminal(sys.stdin) else read_input()
    if not prompt:
        raise RequestError(
            "prompt", "none was given", "Give it as an argument, or through standard input"
        )
    return prompt


def _generate(
    arguments: argparse.Namespace, model: LanguageModel, prompt: str, parameters: dict[str, Any]
) -> Generation:
    if _is_continued(arguments, model):
        if arguments.system is not None:
            raise RequestError(
                "--system",
                "needs a model with a chat template, which this one lacks",
                "Leave it out",
            )
        return model.generate(prompt, **parameters)
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return model.chat(messages, **parameters)


def _is_continued(arguments: argparse.Namespace, model: LanguageModel) -> bool:
    """Whether the prompt is continued as it is, not answered."""
    templated = model.tokenizer is not None and model.tokenizer.chat_template is not None
    return arguments.raw or not templated


def _speed(model: LanguageModel, generation: Generation) -> Speed:
    from firstlight.cli.report import measure

    ceilings = model.backend.known_ceilings()
    bandwidth = None if ceilings is None else ceilings.bandwidth_bytes_per_second
    speed = measure(model, generation, bandwidth)
    # The model has made nothing but this text.
    done = model.engine.statistics()
    return replace(
        speed, proposed_tokens=done.proposed_tokens, accepted_tokens=done.accepted_tokens
    )


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
        result["remarks"] = list(model.backend.remarks())
    return result


def _say(arguments: argparse.Namespace, text: str) -> None:
    """A remark for the person who watches; never among the output."""
    if text and not arguments.quiet and (is_terminal(sys.stderr) or arguments.verbose):
        print(dim(text, sys.stderr), file=sys.stderr)
