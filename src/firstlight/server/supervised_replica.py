"""A replica as the server keeps it: started, watched, ended where it hangs, started again."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

import firstlight.errors
from firstlight.errors import DeviceError, FirstlightError
from firstlight.replica.messages import (
    LOAD_FAILED,
    Beat,
    Cancel,
    Failed,
    FromReplica,
    Launch,
    ModelOptions,
    Ready,
    Refusal,
    Statistics,
    Steps,
    Stop,
)
from firstlight.server.pace import Speed
from firstlight.server.replica_socket import Peer, ReplicaSocket
from firstlight.server.routed_stream import RoutedStream
from firstlight.server.token_streams import ReplicaStatus

log = logging.getLogger("firstlight.server")

LOADING_SILENCE = 60.0
STEP_MARGIN = 4.0
STEADY_SECONDS = 60.0
STOP_SECONDS = 5.0
_KILL_SECONDS = 3.0
_WATCH_SECONDS = 0.25
_KILLED = -9

# Without the current directory among the places that modules come from.
REPLICA_COMMAND = (sys.executable, "-P", "-m", "firstlight.replica")


@dataclass
class Callbacks:
    """What the router wants to hear of.

    Attributes:
        ready: it takes requests from now on.
        steps: it has computed something.
        lost: its process has ended; the streams that it had are still in `streams`.
    """

    ready: Callable[[SupervisedReplica], None]
    steps: Callable[[SupervisedReplica, Steps], None]
    lost: Callable[[SupervisedReplica], None]


@dataclass
class SupervisedReplica:
    """One replica over all the processes that it is, one after another.

    Attributes:
        name, model, device: as /metrics shows them; the model by the name that it is served under.
        cores: numbers of the cores that it keeps to; None: wherever the system likes.
        hang_seconds: how long it may say nothing beyond `STEP_MARGIN` times its longest step.
        slowest_restart: most seconds until its process is started again.
        state: see `ReplicaStatus`.
        streams: those that it computes, by number.
        ready: what the process now running said when it was; None while there is none.
        failure: why the model could not be loaded, the last time that was tried.
        killed_from_outside: its last process was killed, and not by the server.
        longest_step: in seconds, over all its processes.
    """

    name: str
    model: str
    device: str
    options: ModelOptions
    socket: ReplicaSocket
    callbacks: Callbacks
    cores: list[int] | None = None
    hang_seconds: float = 10.0
    slowest_restart: float = 30.0
    command: tuple[str, ...] = REPLICA_COMMAND
    state: str = "starting"
    restarts: int = 0
    moved: int = 0
    streams: dict[int, RoutedStream] = field(default_factory=dict)
    ready: Ready | None = None
    failure: FirstlightError | None = None
    killed_from_outside: bool = False
    longest_step: float = 0.0
    process: asyncio.subprocess.Process | None = None
    speed: Speed = field(default_factory=Speed)
    _peer: Peer | None = None
    _statistics: Statistics = field(default_factory=Statistics)
    _before: Statistics = field(default_factory=Statistics)
    _heard: float = 0.0
    _failures: int = 0
    _killed: bool = False
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def statistics(self) -> Statistics:
        """As the process now running says; totals over those before it as well."""
        now, before = self._statistics, self._before
        totals = {name: getattr(now, name) + getattr(before, name) for name in Statistics.TOTALS}
        return msgspec.structs.replace(now, **totals)

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            self.name,
            self.model,
            self.device,
            self.state,
            self.restarts,
            self.moved,
            self.statistics,
        )

    def take(self, stream: RoutedStream) -> None:
        """Have it compute a stream, from where that stands."""
        self.streams[stream.number] = stream
        stream.unplaced = None
        self._send(stream.start())

    def cancel(self, stream: RoutedStream) -> None:
        """Have it end a stream and free the pages."""
        if self.streams.pop(stream.number, None) is not None:
            self._send(Cancel(stream.number))

    def kill(self, why: str) -> None:
        """End its process now; it is started again."""
        if self.process is not None and self.process.returncode is None:
            log.error("replica %s %s: its process is killed", self.name, why)
            self.process.kill()
            self._killed = True

    async def run(self) -> None:
        """Keep a process running until `stop`, or until the task is cancelled, which kills it."""
        while not self._stopping.is_set():
            self.state = "starting"
            started = asyncio.get_running_loop().time()
            try:
                await self._live()
            finally:
                self._bury()
            if self._stopping.is_set():
                break
            self._rest(asyncio.get_running_loop().time() - started)
            self.callbacks.lost(self)
            delay = self._delay()
            self._failures += 1
            self.restarts += 1
            log.info("replica %s is started again in %.1f s", self.name, delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
        self.state = "stopped"

    def stop(self) -> None:
        """Have its process end once it has finished its step; `run` returns then."""
        self._stopping.set()
        self._send(Stop())

    # Its process -----------------------------------------------------------------------------

    async def _live(self) -> None:
        """A process from its start to its end."""
        self._peer = peer = self.socket.expect(self._receive)
        launch = Launch(
            self.socket.address, peer.key, self.name, self.device, self.options, self.cores
        )
        self._heard = asyncio.get_running_loop().time()
        self.failure = None
        self._killed = False
        self.process = process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
            # A terminal's Ctrl-C is for the server, which has its replicas finish first.
            start_new_session=True,
        )
        relay = asyncio.create_task(self._relay(process))
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(launch) + b"\n")
            await self._watch(process)
            await self._last_words(process)
        finally:
            if process.returncode is None:
                process.kill()
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(process.wait()), _KILL_SECONDS)
            relay.cancel()
            self.killed_from_outside = process.returncode == _KILLED and not self._killed
            if not self._stopping.is_set():
                log.error("replica %s has ended: %s", self.name, _end_of(process.returncode))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the end of the process, and see to it where the process hangs.

        A process that a driver holds does not even end when it is killed. It is left alone then, so
        that its streams can go on elsewhere.
        """
        loop = asyncio.get_running_loop()
        end = asyncio.create_task(process.wait())
        stop_by = give_up_at = math.inf
        try:
            while not end.done():
                looked = loop.time()
                await asyncio.wait({end}, timeout=_WATCH_SECONDS)
                now = loop.time()
                if now - looked > 4 * _WATCH_SECONDS:
                    self._heard = now  # it is the server that was held up
                if give_up_at < math.inf:
                    if now > give_up_at:
                        log.critical("replica %s cannot be killed and is left alone", self.name)
                        return
                    continue
                if self._stopping.is_set():
                    stop_by = min(stop_by, now + STOP_SECONDS)
                silence = now - self._heard
                if now > stop_by:
                    self.kill("does not stop")
                elif silence > self.patience() and not self._stopping.is_set():
                    self.kill(f"has said nothing for {silence:.1f} s")
                else:
                    continue
                give_up_at = now + _KILL_SECONDS
        finally:
            end.cancel()

    async def _last_words(self, process: asyncio.subprocess.Process) -> None:
        """Take in what it has said before its end, above all why it could not load."""
        self.socket.take_all()
        for _ in range(20):
            if process.returncode != LOAD_FAILED or self.failure is not None:
                return
            await asyncio.sleep(0.05)

    def patience(self) -> float:
        """Seconds that it may say nothing before it is taken to hang (docs/reliability.md)."""
        if self.ready is None:
            return LOADING_SILENCE + self.hang_seconds
        return self.hang_seconds + STEP_MARGIN * self.longest_step

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Log what the process writes to standard error."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than the buffer, which is now empty
                continue
            if not line:
                return
            log.warning("replica %s: %s", self.name, line.decode(errors="replace").rstrip())

    def _environment(self) -> dict[str, str]:
        if self.cores is not None:
            return dict(os.environ)
        # Threads of several replicas that are each bound to the same cores would wait in turns.
        return {"FIRSTLIGHT_PIN_THREADS": "0", **os.environ}

    def _bury(self) -> None:
        if self._peer is not None:
            self._peer.forget()
            self._peer = None
        self.state, self.ready, self.process = "stopped", None, None
        if self.failure is not None:
            self.state = "failed"

    def _rest(self, lived: float) -> None:
        self._before = msgspec.structs.replace(
            self.statistics, running=0, waiting=0, pages=0, free_pages=0
        )
        self._statistics = Statistics()
        if lived > STEADY_SECONDS:
            self._failures = 0

    def _delay(self) -> float:
        """Seconds until the next start: none after the first end, then twice as many each time."""
        if self.failure is not None:
            return self.slowest_restart
        # The exponent is bounded lest the power be no number any more.
        delay = 0.25 * 2 ** min(self._failures, 16) if self._failures else 0.0
        return min(self.slowest_restart, delay)

    # What it says ----------------------------------------------------------------------------

    def _receive(self, message: FromReplica) -> None:
        self._heard = asyncio.get_running_loop().time()
        match message:
            case Steps():
                seconds = message.statistics.step_seconds - self._statistics.step_seconds
                self.longest_step = max(self.longest_step, seconds)
                self.speed.add(self._statistics, message.statistics)
                self._statistics = message.statistics
                self.callbacks.steps(self, message)
            case Beat():
                self._statistics = message.statistics
            case Ready():
                self.ready, self.state = message, "ready"
                self.longest_step = max(self.longest_step, message.step_seconds)
                log.info("replica %s is ready", self.name)
                self.callbacks.ready(self)
            case Failed():
                self.failure = error_from(message)
                log.error("replica %s could not load its model: %s", self.name, self.failure)

    def _send(self, message: object) -> None:
        if self._peer is not None:
            self._peer.send(message)  # type: ignore[arg-type]


def error_from(message: Failed | Refusal) -> FirstlightError:
    """The error that a replica has put into a message."""
    kind = getattr(firstlight.errors, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, FirstlightError)):
        kind = DeviceError
    return kind(message.subject, message.reason, message.remedy)


def _end_of(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
