"""Requests to replicas, and their tokens back, whatever becomes of a replica meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firstlight.errors import DeviceError, RequestError
from firstlight.replica.messages import ModelOptions, SequenceRequest, Steps
from firstlight.server.core_shares import core_shares
from firstlight.server.pace import Outputs, wait_for_room, wait_for_start
from firstlight.server.prefix_affinity import PrefixAffinity
from firstlight.server.replica_socket import ReplicaSocket
from firstlight.server.routed_stream import RoutedStream
from firstlight.server.supervised_replica import (
    REPLICA_COMMAND,
    Callbacks,
    SupervisedReplica,
    error_from,
)
from firstlight.server.token_streams import OverloadedError, ReplicaStatus, ServedModel

log = logging.getLogger("firstlight.server")


@dataclass(frozen=True)
class Limits:
    """How much the router takes on.

    Attributes:
        requests: sequences at once, of all models; further ones are refused.
        wait_seconds: how long one may wait for its first token, or for a replica to go on with.
        hang_seconds, slowest_restart: see `SupervisedReplica`.
        convictions: replicas that a request may end all on its own before it is given up.
    """

    requests: int = 256
    wait_seconds: float = 300.0
    hang_seconds: float = 10.0
    slowest_restart: float = 30.0
    convictions: float = 3.0


class Router:
    """A `TokenSource` over replicas, each a process of its own; lives on one event loop.

    Args:
        models: what to load, by the name that it is served under.
        devices: each model gets a replica on each of these; one may stand there several times.
        share_cores: give each replica cores of its own, where there are enough.
        command: starts a replica's process.

    Attributes:
        supervised: every replica.
    """

    def __init__(
        self,
        models: Mapping[str, ModelOptions],
        devices: Sequence[str] = ("cpu",),
        limits: Limits | None = None,
        share_cores: bool = True,
        command: Sequence[str] = REPLICA_COMMAND,
    ) -> None:
        self.limits = limits or Limits()
        self._options = dict(models)
        self._devices = tuple(devices)
        self._share_cores = share_cores
        self._command = tuple(command)
        self._models: dict[str, ServedModel] = {}
        self.supervised: list[SupervisedReplica] = []
        self._streams: dict[int, RoutedStream] = {}
        self._placed: dict[int, SupervisedReplica] = {}
        self._outputs = Outputs()
        self._affinity = PrefixAffinity()
        self._numbers = itertools.count(1)
        self._socket: ReplicaSocket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._draining = False

    async def start(self) -> None:
        """Start every replica's process."""
        self._socket = ReplicaSocket()
        places = [(model, device) for model in self._options for device in self._devices]
        shares = core_shares([device for _, device in places])
        callbacks = Callbacks(self._ready, self._steps, self._lost)
        for index, (model, device) in enumerate(places):
            self.supervised.append(
                SupervisedReplica(
                    name=f"{device}-{index + 1}",
                    model=model,
                    device=device,
                    options=self._options[model],
                    socket=self._socket,
                    callbacks=callbacks,
                    cores=shares[index] if self._share_cores else None,
                    hang_seconds=self.limits.hang_seconds,
                    slowest_restart=self.limits.slowest_restart,
                    command=self._command,
                )
            )
        self._tasks = [asyncio.create_task(replica.run()) for replica in self.supervised]
        self._tasks.append(asyncio.create_task(self._watch_waiting()))

    async def wait_ready(self) -> None:
        """Wait until every model has a replica that is ready.

        Raises:
            FirstlightError: a model cannot be loaded.
        """
        while self._models.keys() != self._options.keys():
            for replica in self.supervised:
                if replica.failure is not None:
                    raise replica.failure
            await self._changed.wait()

    async def drain(self) -> None:
        """Take no more requests, finish those there are, and end the replicas.

        Every accepted request ends as it would have, a replica's end meanwhile included.
        """
        self._draining = True
        while self._streams:
            await self._changed.wait()
        for replica in self.supervised:
            replica.stop()
        await asyncio.wait(self._tasks[:-1])
        await self.stop()

    async def stop(self) -> None:
        """End everything now; requests that are under way fail. Harmless after `drain`."""
        self._draining = True
        for stream in list(self._streams.values()):
            stream.fail(OverloadedError("is stopped", _DRAINING_SECONDS, draining=True))
        self._streams.clear()
        self._notify()
        for replica in self.supervised:
            replica.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    def _notify(self) -> None:
        """Wake who waits for an end of a stream, or a change of a replica."""
        self._changed.set()
        self._changed = asyncio.Event()

    # What the HTTP side asks ------------------------------------------------------------------

    def models(self) -> Mapping[str, ServedModel]:
        return self._models

    def replicas(self) -> list[ReplicaStatus]:
        return [replica.status() for replica in self.supervised]

    def open(self, model: str, request: SequenceRequest) -> RoutedStream:
        """See `TokenSource`; the first tokens come once this returns to the event loop.

        Raises:
            OverloadedError, RequestError: as there.
        """
        served = self._models.get(model)
        if served is None:
            raise RequestError(
                f"model {model!r}", "is not served here", f"Use one of: {', '.join(self._models)}"
            )
        if self._draining:
            raise OverloadedError("is about to stop", _DRAINING_SECONDS, draining=True)
        if len(self._streams) >= self.limits.requests:
            raise OverloadedError(
                f"{len(self._streams)} sequences are under way, the most it takes at once",
                wait_for_room(self._streams.values(), self._outputs, self._rate(model)),
            )
        check_prompt(request.prompt_ids, served)
        wait = self._wait_for_start(model)
        if wait > self.limits.wait_seconds:
            raise OverloadedError(
                f"would come to this request in {wait:.0f} s, and lets none wait longer than "
                f"{self.limits.wait_seconds:g} s",
                wait - self.limits.wait_seconds,
            )
        now = asyncio.get_running_loop().time()
        stream = RoutedStream(next(self._numbers), model, request, self._cancel, now)
        self._streams[stream.number] = stream
        self._place(stream)
        return stream

    # Placing ----------------------------------------------------------------------------------

    def _place(self, stream: RoutedStream) -> None:
        """Give a stream to the replica that should be through with it first; one that may be what
        ends replicas only to one that has no other such. Else it waits."""
        able = [
            replica
            for replica in self.supervised
            if replica.model == stream.model
            and replica.ready is not None
            and not (stream.suspect and any(each.suspect for each in replica.streams.values()))
        ]
        if able:
            length = final_length(stream.request)
            roomy = [each for each in able if room(each) >= length]
            largest = max(room(each) for each in able)
            able = roomy or [each for each in able if room(each) == largest]
            replica = self._choose(able, stream)
            self._placed[stream.number] = replica
            replica.take(stream)

    def _choose(self, able: list[SupervisedReplica], stream: RoutedStream) -> SupervisedReplica:
        """The one that should be through first; or one that has computed how the prompt begins,
        where it is not twice as busy."""
        if len(able) == 1:
            return able[0]
        best = min(able, key=_expected_seconds)
        holder = self._affinity.holder(stream.model, stream.request)
        for replica in able:
            if (replica.name, replica.restarts) == holder:
                if _expected_seconds(replica) <= 2 * _expected_seconds(best):
                    best = replica
                break
        self._affinity.note(stream.model, stream.request, (best.name, best.restarts))
        return best

    def _place_waiting(self) -> None:
        for stream in list(self._streams.values()):
            if stream.number not in self._placed:
                self._place(stream)

    def _ready(self, replica: SupervisedReplica) -> None:
        ready = replica.ready
        assert ready is not None
        self._models.setdefault(
            replica.model,
            ServedModel(replica.model, ready.context_length, ready.vocabulary_size),
        )
        self._place_waiting()
        self._notify()

    def _lost(self, replica: SupervisedReplica) -> None:
        """Have its streams go on elsewhere, or here again, those apart that may have ended it."""
        now = asyncio.get_running_loop().time()
        streams = sorted(replica.streams.values(), key=lambda stream: stream.number)
        replica.streams.clear()
        only_suspect = sum(stream.suspect for stream in streams) == 1
        for stream in streams:
            del self._placed[stream.number]
            stream.unplaced = now
            stream.crashed(only_suspect, replica.killed_from_outside)
            if stream.convictions >= self.limits.convictions:
                stream.fail(_deadly(stream))
                self._forget(stream)
            else:
                replica.moved += 1
        self._place_waiting()
        self._notify()

    # What replicas say ------------------------------------------------------------------------

    def _steps(self, replica: SupervisedReplica, steps: Steps) -> None:
        streams = replica.streams
        for prompt in steps.prompts:
            stream = streams.get(prompt.sequence)
            if stream is not None:
                stream.put_prompt(prompt)
                if stream.ended:
                    self._finish(replica, stream)
        cleared = False
        for token in steps.tokens:
            stream = streams.get(token.sequence)
            if stream is None:  # cancelled while this was on its way
                continue
            cleared |= stream.suspect
            if not stream.put(token):
                replica.kill(f"gave token {token.index} after {len(stream.output_ids)}")
                return
            if token.finish is not None:
                self._finish(replica, stream)
        for refusal in steps.refusals:
            stream = streams.get(refusal.sequence)
            if stream is not None:
                stream.fail(error_from(refusal))
                self._finish(replica, stream)
        if cleared:
            self._place_waiting()

    def _finish(self, replica: SupervisedReplica, stream: RoutedStream) -> None:
        replica.streams.pop(stream.number, None)
        self._outputs.add(len(stream.output_ids))
        self._forget(stream)

    def _cancel(self, stream: RoutedStream) -> None:
        replica = self._placed.get(stream.number)
        if replica is not None:
            replica.cancel(stream)
        self._forget(stream)

    def _forget(self, stream: RoutedStream) -> None:
        self._streams.pop(stream.number, None)
        self._placed.pop(stream.number, None)
        if stream.suspect:  # the next one may be tried
            self._place_waiting()
        self._notify()

    # Waiting ----------------------------------------------------------------------------------

    async def _watch_waiting(self) -> None:
        """Give up, honestly, on what has waited too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.5)
            now = loop.time()
            for stream in list(self._streams.values()):
                since = stream.unplaced
                if since is None and not stream.begun:
                    since = stream.opened
                if since is not None and now - since > self.limits.wait_seconds:
                    wait = wait_for_room(
                        self._streams.values(), self._outputs, self._rate(stream.model)
                    )
                    stream.fail(
                        OverloadedError(
                            f"has not come to this request in {self.limits.wait_seconds:g} s", wait
                        )
                    )
                    self._cancel(stream)

    def _wait_for_start(self, model: str) -> float:
        streams = [each for each in self._streams.values() if each.model == model]
        return wait_for_start(streams, self._outputs, self._rate(model))

    def _rate(self, model: str) -> float:
        return sum(replica.speed.rate for replica in self.supervised if replica.model == model)


_DRAINING_SECONDS = 5.0


def _expected_seconds(replica: SupervisedReplica) -> float:
    """A measure of when a replica would be through with one more stream."""
    assert replica.ready is not None
    return (len(replica.streams) + 1) * max(replica.ready.step_seconds, 1e-6)


def room(replica: SupervisedReplica) -> int:
    """Tokens of the longest sequence that it has state for, which replicas that found more or less
    memory may differ in."""
    assert replica.ready is not None
    return min(replica.ready.context_length, replica.ready.sequence_tokens)


def final_length(request: SequenceRequest) -> float:
    """Tokens of prompt and output that a sequence may come to."""
    limit = math.inf if request.max_tokens is None else request.max_tokens
    return len(request.prompt_ids) + limit


def check_prompt(prompt_ids: Sequence[int], served: ServedModel) -> None:
    """RequestError where no replica could compute this prompt."""
    if not prompt_ids:
        raise RequestError("prompt", "has no tokens", "Give at least one")
    if len(prompt_ids) > served.context_length:
        raise RequestError(
            "prompt",
            f"has {len(prompt_ids)} tokens, and the context holds {served.context_length}",
            "Shorten it, or serve the model with a longer context",
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= served.vocabulary_size:
        raise RequestError(
            "prompt",
            f"has token ids outside 0 to {served.vocabulary_size - 1}, the vocabulary",
            "Encode it with this model's tokenizer",
        )


def _deadly(stream: RoutedStream) -> DeviceError:
    return DeviceError(
        "this request",
        f"{stream.crashes} replicas ended while they computed it, and none got further",
        "Try it without the parameters that are unusual, and report it with the server's log",
    )
