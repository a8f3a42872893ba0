"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.language_model import LanguageModel

_MODEL_HELP = (
    "a Hugging Face model directory, a .gguf file, a hub id (org/name, optionally @revision), "
    "or 'demo'"
)


def add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """The MODEL argument; where optional, the demo model is the default."""
    if optional:
        parser.add_argument("model", nargs="?", default="demo", metavar="MODEL", help=_MODEL_HELP)
    else:
        parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Where a hub id is fetched from."""
    parser.add_argument(
        "--endpoint", metavar="URL", help="hub to fetch from (default: HF_ENDPOINT, or the hub's)"
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = parser.add_argument_group("loading")
    group.add_argument("--device", default="cpu", help="chip to run on (default: cpu)")
    group.add_argument(
        "--weights", metavar="FORMAT", help="convert weights on loading: int8, int4, bf16, f32"
    )
    group.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="longest sequence (default: the model's, or what fits in memory)",
    )
    group.add_argument(
        "--state",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of keys and values (default: float32)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; the model's own generation config is the default of each."""
    group = parser.add_argument_group("sampling (default: the model's own)")
    group.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    group.add_argument("--top-k", type=int, help="only the k likeliest tokens; 0: all")
    group.add_argument("--top-p", type=float, help="the fewest tokens that reach probability p")
    group.add_argument("--min-p", type=float, help="tokens at least p times the likeliest one's")
    group.add_argument("--repetition-penalty", type=float, help="1: none")
    group.add_argument("--presence-penalty", type=float)
    group.add_argument("--frequency-penalty", type=float)
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="TOKEN_ID=BIAS",
        help="added to a token's logit; may be repeated",
    )
    group.add_argument("--seed", type=int, help="makes sampling repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text"
    )
    group.add_argument("--ignore-end", action="store_true", help="go on past end tokens")


def generation_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_sampling` and --max-tokens gave, as `LanguageModel.generate` takes it."""
    names = [
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "ignore_end",
    ]
    parameters = {name: getattr(arguments, name) for name in names}
    parameters["logit_bias"] = dict(arguments.logit_bias) or None
    return parameters


def load_model(arguments: argparse.Namespace) -> LanguageModel:
    """The model that the arguments name."""
    from firstlight.loading import load

    return load(
        arguments.model,
        arguments.device,
        arguments.weights,
        context_length=arguments.context,
        state=arguments.state,
        endpoint=arguments.endpoint,
    )


def _bias(text: str) -> tuple[int, float]:
    token, separator, bias = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN_ID=BIAS")
    return int(token), float(bias)
