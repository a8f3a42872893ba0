"""A follower's process: from being told what it is, to the end of the first rank."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from firstlight.errors import FirstlightError
from firstlight.parallel.messages import (
    FAILED,
    LEFT_ALONE,
    Failed,
    FromFollower,
    Hidden,
    Join,
    Launch,
    Load,
    Loaded,
    Logits,
    NewState,
    Opened,
    ToFollower,
)
from firstlight.parallel.pipe import read_frame, write_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from firstlight.backends.base import Backend
    from firstlight.model.batch import Batch
    from firstlight.model.decoder import Decoder


class _Pipes:
    """The ends of both pipes; another thread reads, and ends the process with the first rank."""

    def __init__(self) -> None:
        # What libraries print to standard output is no message.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._received: queue.SimpleQueue[ToFollower] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="first rank", daemon=True).start()

    def send(self, message: FromFollower) -> None:
        write_frame(self._out, msgspec.msgpack.encode(message))

    def receive(self) -> ToFollower:
        return self._received.get()

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(ToFollower)
        folder = None
        while (frame := read_frame(0)) is not None:
            message = decoder.decode(frame)
            if isinstance(message, Launch):
                folder = Path(message.folder)
            self._received.put(message)
        if folder is not None:
            _remove(folder)
        os._exit(0)


def _remove(folder: Path) -> None:
    """A first rank that was killed has left the folder where ranks met."""
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def main() -> int:
    """Do as the first rank says, until it ends.

    Returns:
        The exit code: `FAILED`, or `LEFT_ALONE`.
    """
    # Whoever interrupts the first rank's process interrupts that alone.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    pipes = _Pipes()
    from firstlight.ops import RanksError

    try:
        _follow(pipes)
    except RanksError:
        code = LEFT_ALONE
    except FirstlightError as error:
        pipes.send(Failed(type(error).__name__, error.subject, error.reason, error.remedy))
        code = FAILED
    except Exception as error:
        traceback.print_exc()
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        pipes.send(Failed("DeviceError", "", reason, ""))
        code = FAILED
    # Other threads and libraries may wait for ranks that are gone.
    sys.stderr.flush()
    os._exit(code)


def _follow(pipes: _Pipes) -> None:
    from firstlight.backends import DeviceWarning, open_device
    from firstlight.progress import set_quiet
    from firstlight.tuning.store import apply_tuning

    launch = pipes.receive()
    assert isinstance(launch, Launch)
    set_quiet(True)
    # The first rank says what concerns the model.
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", DeviceWarning)
    backend = open_device(launch.device, exact=launch.exact)
    if launch.tuned:
        apply_tuning(backend)
    pipes.send(Opened(backend.available_memory()))
    decoder = _load(pipes, launch, backend)
    state, hidden = None, None
    while True:
        match pipes.receive():
            case NewState() as new:
                state = decoder.new_state(new.pages, new.page_tokens, new.dtype)
            case Hidden() as step:
                assert state is not None
                hidden = decoder.hidden(_batch(step), state)
            case Logits() as rows:
                decoder.logits(hidden, _integers(rows.wanted))


def _load(pipes: _Pipes, launch: Launch, backend: Backend) -> Decoder:
    from firstlight.checkpoint.checkpoint import open_checkpoint
    from firstlight.formats.registry import conversion_target
    from firstlight.model.decoder import Decoder
    from firstlight.model.families.registry import make_spec
    from firstlight.packing import load_packed_weights
    from firstlight.parallel.parts import rank_part

    load = pipes.receive()
    assert isinstance(load, Load)
    checkpoint = open_checkpoint(load.path)
    target = conversion_target(load.weights)
    whole = make_spec(checkpoint)
    spec = rank_part(whole, checkpoint, target, launch.rank, launch.ranks, launch.device)
    weights = load_packed_weights(load.model, checkpoint, spec, backend, target, load.cache)
    pipes.send(Loaded())
    assert isinstance(pipes.receive(), Join)
    group = backend.join_ranks(launch.rank, launch.ranks, Path(launch.folder), launch.seconds)
    return Decoder(spec, weights, backend, group)


def _batch(step: Hidden) -> Batch:
    from firstlight.model.batch import Batch

    starts = _integers(step.row_starts)
    return Batch(
        token_ids=_integers(step.token_ids),
        positions=_integers(step.positions),
        lengths=_integers(step.lengths),
        row_starts=starts,
        page_tables=tuple(
            _integers(table).reshape(len(starts) - 1, -1) for table in step.page_tables
        ),
        page_tokens=step.page_tokens,
        wanted=_integers(b""),
    )


def _integers(data: bytes) -> NDArray[np.int32]:
    import numpy as np

    # A copy: PyTorch dislikes memory that must not be written to.
    return np.frombuffer(data, np.int32).copy()
