"""`firstlight verify`: how far a model's predictions move when it is run in another way."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from firstlight.cli.input import read_text_file
from firstlight.cli.options import add_exact, add_hub, add_model, add_state
from firstlight.cli.terminal import harmless, json_text
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from firstlight.verify.divergence import Divergence
    from firstlight.verify.fidelity import Configuration, Fidelity

_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`."""
    parser.epilog = (
        "Both run over the same texts. Divergence is Kullback's and Leibler's, in nats, of each "
        "prediction of a next token over the whole vocabulary. The exit code is 1 where a --limit "
        "is passed."
    )
    add_model(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    texts = parser.add_argument_group("texts (default: built-in prose, code and Chinese)")
    texts.add_argument(
        "--text", action="append", metavar="FILE", help="a text file in UTF-8; may be repeated"
    )
    texts.add_argument("--tokens", type=int, metavar="COUNT", help="at most so many of each text")
    compared = parser.add_argument_group("what is compared")
    compared.add_argument("--device", default="cpu", help="chip to run on (default: cpu)")
    compared.add_argument(
        "--weights", metavar="FORMAT", help="convert weights on loading: int8, int4, bf16, f32"
    )
    add_state(compared)
    add_exact(compared)
    reference = parser.add_argument_group("what it is compared with")
    reference.add_argument(
        "--reference",
        metavar="DEVICE",
        default="cpu",
        help="chip of the reference, which is exact, keeps float32 state and the weights as "
        "stored (default: cpu; numpy is the definition itself, and slow)",
    )
    reference.add_argument(
        "--reference-weights", metavar="FORMAT", help="convert the reference's weights too"
    )
    reference.add_argument(
        "--limit", type=float, metavar="NATS", help="fail where the mean divergence is above this"
    )
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print a row for each text and one for all."""
    from firstlight.progress import set_quiet
    from firstlight.verify.fidelity import Configuration, measure_fidelity

    set_quiet(arguments.quiet)
    if arguments.limit is not None and not arguments.limit >= 0:
        raise RequestError("--limit", "is no divergence", "Give zero or a positive number")
    texts = None
    if arguments.text is not None:
        texts = {name: read_text_file(name) for name in arguments.text}
    fidelity = measure_fidelity(
        arguments.model,
        Configuration(arguments.device, arguments.weights, arguments.state, arguments.exact),
        Configuration(arguments.reference, arguments.reference_weights, exact=True),
        texts,
        tokens=arguments.tokens,
        endpoint=arguments.endpoint,
        update=arguments.update,
    )
    if arguments.json:
        print(json_text(_values(arguments, fidelity)))
    else:
        print(harmless(_table(fidelity)))
    mean = fidelity.total.mean
    # NaN passes no limit.
    return 0 if arguments.limit is None or mean <= arguments.limit else _FAILED


def _values(arguments: argparse.Namespace, fidelity: Fidelity) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "configuration": _configuration(fidelity.configuration),
        "reference": _configuration(fidelity.reference),
        "texts": {name: _figures(each) for name, each in fidelity.texts.items()},
        "total": _figures(fidelity.total),
    }


def _configuration(configuration: Configuration) -> dict[str, Any]:
    return dict(vars(configuration))


def _figures(divergence: Divergence) -> dict[str, Any]:
    figures = {
        "mean_divergence": divergence.mean,
        "largest_divergence": divergence.most,
        "same_choice": divergence.agreement,
        "perplexity": divergence.perplexity,
        "reference_perplexity": divergence.reference_perplexity,
    }
    # JSON knows no infinity and no NaN.
    finite = {name: each if math.isfinite(each) else None for name, each in figures.items()}
    return {"tokens": divergence.tokens, **finite}


def _table(fidelity: Fidelity) -> str:
    rows = [*fidelity.texts.items(), ("all", fidelity.total)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [
        f"{fidelity.configuration}",
        f"beside {fidelity.reference}",
        "",
        f"{'text':<{width}}{'tokens':>7}{'mean KL':>11}{'largest':>11}{'same choice':>13}"
        f"{'perplexity':>24}",
    ]
    for name, each in rows:
        change = each.perplexity / each.reference_perplexity - 1
        perplexity = f"{each.reference_perplexity:.2f} -> {each.perplexity:.2f} {change:+7.2%}"
        lines.append(
            f"{name:<{width}}{each.tokens:>7}{each.mean:>11.2e}{each.most:>11.2e}"
            f"{each.agreement:>13.1%}{perplexity:>24}"
        )
    return "\n".join(lines)
