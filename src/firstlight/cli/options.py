"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.language_model import LanguageModel
    from firstlight.loading import Use

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
MODEL_HELP = (
    "a Hugging Face model directory, a .gguf file, a hub id (ORG/NAME, ORG/NAME/FILE.gguf, "
    "optionally with @REVISION), or 'demo'"
)


def add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """The MODEL argument; where optional, the demo model is the default."""
    if optional:
        parser.add_argument("model", nargs="?", default="demo", metavar="MODEL", help=MODEL_HELP)
    else:
        parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Where a hub id is fetched from, and when."""
    group = parser.add_argument_group("hub")
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="hub to fetch from (default: HF_ENDPOINT, or https://huggingface.co)",
    )
    group.add_argument(
        "--update",
        action="store_true",
        help="ask the hub whether it has a newer version than the one here",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--device",
        default="cpu",
        help="chip to run on: cpu, numpy, or one of PyTorch's: torch, torch:cpu, torch:TYPE:INDEX, "
        "or torch:TYPE:FIRST-LAST for several that share the model (default: cpu)",
    )
    group.add_argument(
        "--weights", metavar="FORMAT", help="convert weights on loading: int8, int4, bf16, f32"
    )
    group.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="longest sequence (default: the model's, or what fits in memory)",
    )
    add_state(group)
    add_exact(group)
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="pack weights in memory, and keep nothing on disk (see firstlight cache)",
    )
    group.add_argument(
        "--no-graphs",
        action="store_true",
        help="ask a device of PyTorch's for every op of every step, and replay none from a graph",
    )
    _add_tuning(group)


def add_speculation(parser: argparse._ActionsContainer) -> None:
    """How tokens are guessed ahead."""
    parser.add_argument(
        "--speculate",
        type=_speculation,
        default="auto",
        metavar="HOW",
        help="guess tokens ahead, which changes no output: auto, from what stands in the text; "
        "mtp, by the model's own layer of multi-token prediction; a number, always so many; off "
        "(default: auto)",
    )


def _speculation(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def _add_tuning(parser: argparse._ActionsContainer) -> None:
    tuning = parser.add_mutually_exclusive_group()
    tuning.add_argument(
        "--tune",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="first tune for this model what `firstlight tune` has not tuned yet",
    )
    tuning.add_argument(
        "--no-tune",
        action="store_const",
        const=None,
        dest="tune",
        help="run as if nothing had been tuned on this device",
    )


def add_state(parser: argparse._ActionsContainer) -> None:
    """What keys and values are kept in."""
    parser.add_argument(
        "--state",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="dtype of keys and values (default: bfloat16, or float32 with --exact)",
    )


def add_exact(parser: argparse._ActionsContainer) -> None:
    """Whether speed may cost any accuracy."""
    parser.add_argument(
        "--exact",
        action="store_true",
        help="round no activations and keep float32 state: slower, and as the definitions say",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; the model's own generation config is the default of each."""
    group = parser.add_argument_group("sampling (default: the model's own)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token")
    group.add_argument("--top-k", type=int, metavar="K", help="only the k likeliest tokens; 0: all")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="the fewest tokens that reach probability p"
    )
    group.add_argument(
        "--min-p", type=float, metavar="P", help="tokens at least p times the likeliest one's"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="FACTOR",
        help="divides the logits of tokens that have come; 1: none",
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        metavar="AMOUNT",
        help="less of every token that has come; 0: none",
    )
    group.add_argument(
        "--frequency-penalty",
        type=float,
        metavar="AMOUNT",
        help="less each time that a token comes; 0: none",
    )
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="TOKEN_ID=BIAS",
        help="added to a token's logit; may be repeated",
    )
    group.add_argument("--seed", type=int, metavar="NUMBER", help="makes sampling repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text"
    )
    group.add_argument("--ignore-end", action="store_true", help="go on past end tokens")


def generation_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_sampling` and --max-tokens gave, as `LanguageModel.generate` takes it.

    Raises:
        RequestError: a value is out of range.
    """
    from firstlight.engine.parameters import SamplingParameters, StopConditions

    StopConditions(arguments.max_tokens, stop=tuple(arguments.stop))
    sampling = {
        name: getattr(arguments, name) for name in _SAMPLING if getattr(arguments, name) is not None
    }
    if arguments.logit_bias:
        sampling["logit_bias"] = dict(arguments.logit_bias)
    SamplingParameters(**sampling)
    return {
        "max_tokens": arguments.max_tokens,
        "stop": arguments.stop,
        "ignore_end": arguments.ignore_end,
        **sampling,
    }


def load_model(arguments: argparse.Namespace, use: Use, **more: Any) -> LanguageModel:
    """The model that the arguments name; see `loading.load` for `use` and what else there is."""
    from firstlight.loading import load

    return load(
        arguments.model,
        arguments.device,
        arguments.weights,
        context_length=arguments.context,
        state=arguments.state,
        exact=arguments.exact,
        endpoint=arguments.endpoint,
        update=arguments.update,
        use=use,
        cache=not arguments.no_cache,
        tune=arguments.tune,
        graphs=not arguments.no_graphs,
        **more,
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not TOKEN_ID=BIAS, a whole number and a number"
        ) from None
