"""`firstlight serve`: models behind OpenAI's API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from firstlight.cli.options import MODEL_HELP, add_hub, add_loading, add_speculation
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from ssl import SSLContext

    from firstlight.server.serving import Settings

_MEBIBYTE = 1 << 20
_GIBIBYTE = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    parser.epilog = (
        "Any OpenAI client can use it: base URL http://HOST:PORT/v1. SIGTERM or Ctrl-C lets "
        "requests that are running finish first; a second one does not."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen at; 0: any (default: 8000)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="what requests call the model (default: as given, of a path the last part); "
        "once for each model",
    )
    parser.add_argument(
        "--replicas",
        metavar="DEVICES",
        help="each model runs once on each of these devices, in a process of its own: cpu,cpu "
        "(default: once, on --device)",
    )
    parser.add_argument(
        "--no-core-shares",
        action="store_true",
        help="let the system place replicas on the processor's cores, instead of giving each its "
        "own (Linux)",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="of lines on standard error"
    )
    add_loading(parser)
    add_hub(parser)
    _add_engine(parser.add_argument_group("engine, of each replica"))
    _add_access(parser.add_argument_group("access"))
    _add_limits(parser.add_argument_group("limits"))


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sequences", type=int, metavar="COUNT", help="most that run at once; others wait"
    )
    group.add_argument(
        "--state-memory",
        type=float,
        metavar="GIB",
        help="for keys and values, prefixes to be used again among them",
    )
    group.add_argument("--token-budget", type=int, metavar="TOKENS", help="most tokens of one step")
    group.add_argument(
        "--prompt-budget",
        type=int,
        metavar="TOKENS",
        help="most tokens of prompts in a step in which others decode: fewer let streams flow more "
        "evenly, more begin new ones sooner",
    )
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="compute every prompt from its beginning"
    )
    add_speculation(group)


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="keys that are good, one a line: KEY [NAME] [requests=N] [tokens=N] [priority=N]",
    )
    group.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin use the server; * is any; may be repeated",
    )
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM, with its chain")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    group.add_argument(
        "--share-prefixes",
        action="store_true",
        help="share cached prompts between keys; the time that saves tells what others have asked",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-requests",
        type=int,
        default=256,
        metavar="COUNT",
        help="sequences that are running or waiting; more are refused with 429 (default: 256)",
    )
    group.add_argument(
        "--max-wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long a request may wait for its first token (default: 300)",
    )
    group.add_argument(
        "--hang-seconds",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="a replica without a step for this long, and much longer than any before, is started "
        "again (default: 10)",
    )
    group.add_argument(
        "--max-body", type=float, default=16.0, metavar="MIB", help="of a request (default: 16)"
    )
    group.add_argument(
        "--max-connections", type=int, default=1000, metavar="COUNT", help="(default: 1000)"
    )
    group.add_argument(
        "--requests-per-minute", type=int, metavar="COUNT", help="of each key that has no other"
    )
    group.add_argument(
        "--tokens-per-minute", type=int, metavar="COUNT", help="of each key that has no other"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    _check(arguments)
    # Imported here: no other command waits for these.
    from firstlight.server.http_server import listen
    from firstlight.server.logs import start_logging
    from firstlight.server.serving import serve

    tls = _tls(arguments)
    listener = listen(arguments.host, arguments.port)
    try:
        settings = _settings(arguments)
        start_logging(arguments.log_format)
        serve(settings, listener, tls)
    finally:
        listener.close()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for option in (
        "context", "sequences", "state_memory", "token_budget", "prompt_budget", "max_requests",
        "max_wait", "hang_seconds", "max_body", "max_connections", "requests_per_minute",
        "tokens_per_minute",
    ):  # fmt: skip
        value = getattr(arguments, option)
        if value is not None and not 0 < value < 1 << 40:
            _refuse(option, f"is {value:g}", "Give a number above zero")
    if not 0 <= arguments.port < 1 << 16:
        _refuse("port", f"is {arguments.port}", "Give a port from 0 to 65535")
    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        _refuse("tls_key", "and --tls-certificate need each other", "Give both, or neither")
    if len(arguments.name) not in (0, len(arguments.models)):
        _refuse(
            "name",
            f"is given {len(arguments.name)} times for {len(arguments.models)} models",
            "Give it once for each model, in their order",
        )


def _refuse(option: str, reason: str, remedy: str) -> NoReturn:
    raise RequestError(f"--{option.replace('_', '-')}", reason, remedy)


def _tls(arguments: argparse.Namespace) -> SSLContext | None:
    from firstlight.server.http_server import tls_context

    if arguments.tls_certificate is None:
        return None
    return tls_context(arguments.tls_certificate, arguments.tls_key)


def _settings(arguments: argparse.Namespace) -> Settings:
    from firstlight.engine.speculation import check_speculation
    from firstlight.replica.messages import ModelOptions
    from firstlight.server.api_keys import Caller, read_api_keys
    from firstlight.server.limits import Limits
    from firstlight.server.router import Limits as RouterLimits
    from firstlight.server.served_model import open_model_text
    from firstlight.server.serving import Settings

    check_speculation(arguments.speculate)
    rates = arguments.requests_per_minute, arguments.tokens_per_minute
    names = model_names(arguments.models, arguments.name)
    devices = _devices(arguments)
    callers = () if arguments.api_keys is None else read_api_keys(arguments.api_keys, *rates)
    # A model is fetched here, before any replica looks for it.
    texts = {
        name: open_model_text(name, model, arguments.endpoint, arguments.update)
        for name, model in zip(names, arguments.models, strict=True)
    }
    models = {
        name: ModelOptions(
            model=model,
            weights=arguments.weights,
            context_length=arguments.context,
            sequences=arguments.sequences,
            token_budget=arguments.token_budget,
            prompt_budget=arguments.prompt_budget,
            state=arguments.state,
            state_memory=None
            if arguments.state_memory is None
            else int(arguments.state_memory * _GIBIBYTE),
            prefix_caching=not arguments.no_prefix_caching,
            speculation=arguments.speculate,
            exact=arguments.exact,
            endpoint=arguments.endpoint,
            cache=not arguments.no_cache,
            tune=arguments.tune,
            graphs=not arguments.no_graphs,
        )
        for name, model in zip(names, arguments.models, strict=True)
    }
    return Settings(
        models,
        texts,
        devices,
        Limits(
            body_bytes=int(arguments.max_body * _MEBIBYTE), connections=arguments.max_connections
        ),
        RouterLimits(
            requests=arguments.max_requests,
            wait_seconds=arguments.max_wait,
            hang_seconds=arguments.hang_seconds,
        ),
        callers,
        Caller("", b"", *rates),
        arguments.cors,
        arguments.share_prefixes,
        not arguments.no_core_shares,
    )


def _devices(arguments: argparse.Namespace) -> list[str]:
    given = arguments.replicas or arguments.device
    devices = [each.strip() for each in given.split(",")]
    if not all(devices):
        _refuse("replicas", f"is {given!r}", "Give devices with commas between, as cpu,cpu")
    from firstlight.backends import open_device, rank_devices
    from firstlight.formats.registry import conversion_target

    conversion_target(arguments.weights)
    # What is misspelt is said before anything is fetched.
    for device in dict.fromkeys(devices):
        open_device(rank_devices(device)[0])
    return devices


def model_names(models: list[str], given: list[str]) -> list[str]:
    """What requests call each model.

    Raises:
        RequestError: two would have one name.
    """
    names = given or [_name(model) for model in models]
    if len(set(names)) < len(names) or not all(names):
        _refuse("name", f"would be {', '.join(names)}", "Give each model a --name of its own")
    return names


def _name(model: str) -> str:
    path = Path(model)
    return path.resolve().name if path.exists() else model
