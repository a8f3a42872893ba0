"""The other ranks' processes, as the first rank sees them: started, told, watched, ended."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

import firstlight.errors
from firstlight.errors import DeviceError, FirstlightError
from firstlight.parallel.messages import LEFT_ALONE, Failed, FromFollower, Launch, ToFollower
from firstlight.parallel.pipe import read_frame, write_frame

COLLECTIVE_SECONDS = 60.0
"""How long a rank waits for the others before it takes them to hang."""
NOTICE_SECONDS = 5.0
"""How long after the end of a process the first rank may go on waiting for it."""
_STOP_SECONDS = 2.0
_EXPLAIN_SECONDS = 1.0

COMMAND = (sys.executable, "-P", "-m", "firstlight.parallel")


@dataclass
class _Process:
    """One follower.

    Attributes:
        messages: what it has said; None: no more will come.
        code: its exit code, or minus the signal that ended it; None while it runs.
    """

    rank: int
    device: str
    process: subprocess.Popen[bytes]
    messages: queue.SimpleQueue[FromFollower | None] = field(default_factory=queue.SimpleQueue)
    failed: Failed | None = None
    code: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Watch:
    """What threads that wait for a process's end share.

    Attributes:
        order: those that have ended, in order.
        closing: they are meant to end.
        leave: ends the first rank's wait for the others.
    """

    order: list[_Process] = field(default_factory=list)
    closing: bool = False
    leave: Callable[[], None] | None = None


class Followers:
    """The processes of all ranks but the first; of one model at a time.

    They end with this process however that ends, since their standard input ends then.

    Args:
        name: what the user calls the devices together.
        devices: of every rank, the first one's too.
        exact, tuned: as in `Launch`.

    Raises:
        DeviceError: this process is the first rank of another model.
    """

    _living: ClassVar[weakref.WeakSet[Followers]] = weakref.WeakSet()
    _end: weakref.finalize[..., Followers]

    def __init__(self, name: str, devices: Sequence[str], *, exact: bool, tuned: bool) -> None:
        for other in self._living:
            if other._end.alive:
                raise DeviceError(
                    f"device {name!r}",
                    f"this process runs a model on several devices already ({other.name})",
                    "Let go of that first (del model), or use a process for each",
                )
        self._living.add(self)
        self.name: str = name
        self.ranks = len(devices)
        self.folder = tempfile.mkdtemp(prefix="firstlight-ranks-")
        self._watch = _Watch()
        self._broken: DeviceError | None = None
        self._processes: list[_Process] = []
        self._end = weakref.finalize(self, _end, self._processes, self._watch, self.folder)
        for rank, device in enumerate(devices[1:], start=1):
            # A session of its own: a terminal's Ctrl-C is for the first rank.
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            follower = _Process(rank, device, process)
            self._processes.append(follower)
            assert process.stdin is not None
            os.set_blocking(process.stdin.fileno(), False)
            threading.Thread(
                target=_listen, args=(follower, self._watch), name=f"rank {rank}", daemon=True
            ).start()
            self._send(
                follower,
                Launch(rank, self.ranks, device, exact, tuned, self.folder, COLLECTIVE_SECONDS),
            )

    def on_end(self, leave: Callable[[], None]) -> None:
        """What to call where a process ends and the first rank may be waiting for it."""
        self._watch.leave = leave

    def tell(self, message: ToFollower) -> None:
        """Tell every follower.

        Raises:
            DeviceError: one has ended, now or before, or does not read.
        """
        self.check()
        data = msgspec.msgpack.encode(message)
        for each in self._processes:
            self._send_bytes(each, data)

    def answers(self, kind: type[FromFollower]) -> list[FromFollower]:
        """Wait until every follower has given its next answer, of one kind.

        Raises:
            FirstlightError: what one has failed with.
        """
        found = []
        for each in self._processes:
            answer = each.messages.get()
            if answer is None:
                each.ended.wait(_EXPLAIN_SECONDS)
                raise self.failed(None)
            assert isinstance(answer, kind)
            found.append(answer)
        return found

    def check(self) -> None:
        """DeviceError where a follower has ended, so that nothing can be computed any more."""
        if self._broken is None and self._watch.order:
            self.failed(None)
        if self._broken is not None:
            raise self._broken

    def failed(self, error: Exception | None) -> FirstlightError:
        """End all: the ranks are no longer at the same point. Gives why.

        Args:
            error: what the first rank's own part of a step, or its wait for others, has raised.
        """
        if self._broken is not None:
            return self._broken
        found = self._culprit()
        if found is not None and found.failed is not None and found.failed.subject:
            # What a user can do something about, as a rank said it.
            kind = getattr(firstlight.errors, found.failed.kind, DeviceError)
            said = found.failed
            why: FirstlightError = kind(said.subject, said.reason, said.remedy)
        else:
            why = DeviceError(
                f"device {self.name!r}",
                _cause(found, error),
                "Start it anew; if this happens again, look at what that rank has written to "
                "standard error, and at this machine's memory",
            )
        self._broken = DeviceError(why.subject, why.reason, why.remedy)
        self.close()
        return why

    def close(self) -> None:
        """End every follower; harmless where they have ended."""
        self._end()

    @property
    def processes(self) -> tuple[int, ...]:
        """Their process ids, in order of ranks."""
        return tuple(each.process.pid for each in self._processes)

    def _culprit(self) -> _Process | None:
        """Who has ended by itself, and not because another had; waits a moment for that."""
        deadline = time.monotonic() + _EXPLAIN_SECONDS
        while True:
            for each in self._watch.order:
                if each.code != LEFT_ALONE:
                    return each
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)

    def _send(self, follower: _Process, message: ToFollower) -> None:
        self._send_bytes(follower, msgspec.msgpack.encode(message))

    def _send_bytes(self, follower: _Process, data: bytes) -> None:
        assert follower.process.stdin is not None
        try:
            write_frame(follower.process.stdin.fileno(), data, COLLECTIVE_SECONDS)
        except OSError as error:  # a TimeoutError is one
            raise self.failed(error) from error


def _cause(found: _Process | None, error: Exception | None) -> str:
    if found is None:
        said = "" if error is None else f" ({str(error).rstrip('.')})"
        return f"its ranks have lost each other{said}"
    if found.failed is not None:
        return f"rank {found.rank} ({found.device}) has failed: {found.failed.reason}"
    code = found.code
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the process of rank {found.rank} ({found.device}) was ended by {how}"


def _listen(follower: _Process, watch: _Watch) -> None:
    """Take what a process says; when it ends, have the first rank wait for it no longer."""
    assert follower.process.stdout is not None
    decoder = msgspec.msgpack.Decoder(FromFollower)
    descriptor = follower.process.stdout.fileno()
    while (frame := read_frame(descriptor)) is not None:
        message = decoder.decode(frame)
        if isinstance(message, Failed):
            follower.failed = message
        else:
            follower.messages.put(message)
    follower.code = follower.process.wait()
    watch.order.append(follower)
    follower.ended.set()
    follower.messages.put(None)
    if not watch.closing:
        # Libraries that see the end of a connection have raised long before.
        time.sleep(NOTICE_SECONDS)
        if not watch.closing and watch.leave is not None:
            watch.leave()


def _end(processes: list[_Process], watch: _Watch, folder: str) -> None:
    watch.closing = True
    for each in processes:
        assert each.process.stdin is not None
        each.process.stdin.close()
    if watch.leave is not None:
        watch.leave()
    deadline = time.monotonic() + _STOP_SECONDS
    for each in processes:
        if not each.ended.wait(max(0.0, deadline - time.monotonic())):
            each.process.kill()
    shutil.rmtree(folder, ignore_errors=True)
