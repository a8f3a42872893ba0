"""`firstlight tune`: find the fastest kernels for a model on this machine, and keep them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from firstlight.cli.columns import aligned
from firstlight.cli.options import add_hub, add_model
from firstlight.cli.terminal import harmless, json_text

if TYPE_CHECKING:
    from firstlight.backends.kernel import Choice
    from firstlight.ops.shape import Shape
    from firstlight.tuning.store import Store
    from firstlight.tuning.tuner import Result

_SECONDS = 120.0
_INTERRUPTED = 130
# A shape that takes less of a step and runs as before is left out of the table.
_SHOWN_SHARE = 0.002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tune`."""
    parser.epilog = (
        "What is found is kept for this device and this build of firstlight, and every model with "
        "such shapes uses it. Ctrl-C keeps what has been found; the same command goes on from "
        "there. A model gives the same tokens tuned or not."
    )
    add_model(parser)
    parser.add_argument("--device", default="cpu", help="chip to tune (default: cpu)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="SECONDS",
        help=f"how long at most (default: {_SECONDS:g}); it ends sooner where all is clear",
    )
    parser.add_argument(
        "--restart", action="store_true", help="measure again what is known of this model"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument(
        "--weights", metavar="FORMAT", help="as if the weights were converted to this format"
    )
    parser.add_argument(
        "--state",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of keys and values (default: float32)",
    )
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tune, and print what was chosen for each shape."""
    from firstlight.loading import load
    from firstlight.progress import progress, set_quiet
    from firstlight.tuning.model import tune_model
    from firstlight.tuning.store import Store
    from firstlight.tuning.tuner import Settings

    set_quiet(arguments.quiet)
    Settings(seconds=arguments.seconds)
    model = load(
        arguments.model,
        arguments.device,
        arguments.weights,
        state=arguments.state,
        endpoint=arguments.endpoint,
        update=arguments.update,
        tune=None,
    )
    model.backend.ceilings()  # measured now if they have not been
    store = Store(model.backend)
    found: dict[tuple[str, Shape], Result] = {}
    interrupted = False
    try:
        with progress("Tuning", total=round(arguments.seconds), unit="s") as advance:
            for result in tune_model(
                model,
                store,
                arguments.seconds,
                state=arguments.state,
                restart=arguments.restart,
                advance=advance,
            ):
                found[result.entry.key] = result
    except KeyboardInterrupt:
        interrupted = True
    results = list(found.values())
    if arguments.json:
        print(json_text(_report(arguments, model.backend.device_key(), store, results)))
    elif results:
        print(harmless(_table(results)))
    if not arguments.quiet:
        print(_summary(store, results, interrupted), file=sys.stderr)
    return _INTERRUPTED if interrupted else 0


def _gain(results: list[Result]) -> float:
    """Seconds saved over seconds without tuning, of the recorded steps as weighted."""
    from firstlight.ops.contract import get_op

    parts = [each for each in results if not get_op(each.entry.op).composite]
    return sum(each.share * (1 - each.entry.ratio) for each in parts)


def _summary(store: Store, results: list[Result], interrupted: bool) -> str:
    if interrupted:
        return (
            f"firstlight: interrupted; {len(results)} shapes are kept. "
            "The same command goes on with the others."
        )
    if not results:
        return "firstlight: nothing to tune: no op of this model has a choice on this device"
    changed = sum(each.entry.choice != each.entry.default for each in results)
    fresh = sum(each.fresh for each in results)
    undecided = sum(not each.entry.decided for each in results)
    text = (
        f"firstlight: {fresh} shapes measured, {len(results) - fresh} known before; {changed} run "
        f"better than by default, for {_gain(results):.1%} less time. Kept in {store.path}"
    )
    if undecided:
        text += f". {undecided} could be measured longer: --seconds"
    return text


def _table(results: list[Result]) -> str:
    """The shapes that matter: those that run otherwise now, and those that take the time."""
    shown = [
        each
        for each in results
        if each.entry.choice != each.entry.default or each.share >= _SHOWN_SHARE
    ]
    rows = [("op and shape", "share", "chosen", "time", "gain", "of ceiling")]
    for result in sorted(shown, key=lambda each: -each.share):
        entry = result.entry
        ceiling = result.ceiling_share
        rows.append(
            (
                _name(result),
                f"{result.share:.1%}",
                str(entry.choice)
                if entry.choice != entry.default
                else f"{entry.default} (default)",
                _time(entry.seconds),
                f"{1 - entry.ratio:.1%}" if entry.choice != entry.default else "",
                "" if ceiling is None else f"{ceiling:.0%}",
            )
        )
    return aligned(rows, left=(0, 2))


def _name(result: Result) -> str:
    from firstlight.ops.shape import describe

    return f"{result.entry.op} {describe(result.entry.shape)}"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"


def _report(
    arguments: argparse.Namespace, device: str, store: Store, results: list[Result]
) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "device": device,
        "seconds": arguments.seconds,
        "file": str(store.path),
        "gain": round(_gain(results), 4),
        "shapes": [
            {
                "op": each.entry.op,
                "shape": list(each.entry.shape),
                "calls": each.calls,
                "share": round(each.share, 6),
                "default": _choice(each.entry.default),
                "choice": _choice(each.entry.choice),
                "seconds": each.entry.seconds,
                "default_seconds": each.entry.seconds / max(each.entry.ratio, 1e-12),
                "ratio": round(each.entry.ratio, 6),
                "ceiling_share": each.ceiling_share,
                "candidates": each.entry.candidates,
                "decided": each.entry.decided,
                "measured_now": each.fresh,
                "refused": each.refused,
            }
            for each in results
        ],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {"kernel": choice.kernel, "parameters": dict(choice.parameters)}
