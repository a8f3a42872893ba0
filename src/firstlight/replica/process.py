"""A replica's process: from the line that says what it is to be, to its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from firstlight.errors import FirstlightError
from firstlight.replica.connection import BEAT_SECONDS, BeatsMeanwhile, Connection
from firstlight.replica.messages import (
    LOAD_FAILED,
    Beat,
    Cancel,
    Failed,
    Launch,
    ModelOptions,
    Ready,
    Start,
    Stop,
)

if TYPE_CHECKING:
    from firstlight.replica.worker import Worker


_FAREWELL_SECONDS = 2.0
_STUCK_SECONDS = 0.01


def main() -> int:
    """Run a replica as the `Launch` on standard input says, until the server ends it or is gone.

    Whatever the engine raises for all sequences together ends the process with a traceback: the
    server then has its sequences go on in a fresh one.

    Returns:
        The exit code: 0 when told to end, `LOAD_FAILED` where the model could not be loaded.
    """
    # When to end is the server's business: it lets requests finish first, even where a terminal or
    # a service manager sends the signal to every process of the group.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    launch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Launch)
    threading.Thread(
        target=_end_with_server, args=(launch.address,), name="server", daemon=True
    ).start()
    # Before NumPy is imported, which counts the cores that it may use.
    bind_to_cores(launch.cores)
    connection = Connection(launch.address, launch.key)
    linger = 0.0
    try:
        try:
            with BeatsMeanwhile(connection):
                worker, ready = load(launch.device, launch.options)
        except FirstlightError as error:
            connection.send(Failed(type(error).__name__, error.subject, error.reason, error.remedy))
            linger = _FAREWELL_SECONDS
            return LOAD_FAILED
        connection.send(ready)
        serve(worker, connection)
    finally:
        connection.close(linger)
    return 0


def load(device: str, options: ModelOptions) -> tuple[Worker, Ready]:
    """Load the model and warm up.

    Raises:
        FirstlightError: as `loading.load`.
    """
    from firstlight.loading import load
    from firstlight.replica.warm_up import warm_up
    from firstlight.replica.worker import Worker

    arguments = msgspec.structs.asdict(options)
    for name in ("sequences", "token_budget", "prompt_budget"):
        if arguments[name] is None:
            del arguments[name]
    engine = load(device=device, **arguments).engine
    ready = Ready(
        context_length=engine.context_length,
        sequence_tokens=engine.sequence_tokens,
        vocabulary_size=engine.decoder.spec.vocabulary_size,
        step_seconds=warm_up(engine),
    )
    return Worker(engine), ready


def serve(worker: Worker, connection: Connection) -> None:
    """Take messages and compute steps in turn, until told to stop."""
    beat_at = time.monotonic()
    while True:
        wait = 0.0 if worker.busy else max(0.0, beat_at - time.monotonic())
        for message in connection.receive(wait):
            match message:
                case Start():
                    worker.start(message)
                case Cancel():
                    worker.cancel(message.sequence)
                case Stop():
                    return
        if worker.busy:
            steps = worker.step()
            if steps is None:
                # Sequences wait and none can go on, which should not be: silence has it noticed.
                time.sleep(_STUCK_SECONDS)
                continue
            connection.send(steps)
        elif time.monotonic() >= beat_at:
            worker.check()
            connection.send(Beat(worker.statistics()))
        else:
            continue
        beat_at = time.monotonic() + BEAT_SECONDS


def bind_to_cores(cores: list[int] | None) -> None:
    """Keep this process on some cores, where the system can (Linux)."""
    bind = getattr(os, "sched_setaffinity", None)
    if cores is not None and bind is not None:
        bind(0, cores)


def _end_with_server(address: str) -> None:
    """End this process when standard input ends, which it does however the server ends."""
    # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    if address.startswith("ipc://"):
        # A server that was killed has left its socket, and the directory that holds nothing else.
        socket = Path(address.removeprefix("ipc://"))
        with suppress(OSError):
            socket.unlink()
            socket.parent.rmdir()
    os._exit(0)
