"""Token sources for tests of the HTTP side: a real engine in a thread, and one with a script."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.errors import FirstlightError
from firstlight.language_model import LanguageModel
from firstlight.replica.messages import SequenceRequest, Start, Statistics, Steps
from firstlight.replica.worker import Worker
from firstlight.server.supervised_replica import error_from
from firstlight.server.token_streams import (
    OverloadedError,
    PromptEvent,
    ReplicaStatus,
    ServedModel,
    TokenEvent,
)

Event = PromptEvent | TokenEvent | FirstlightError | None


@dataclass(eq=False)
class QueuedStream:
    """A stream that somebody else fills; None ends it."""

    on_cancel: Callable[[], None] = lambda: None
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    _ended: bool = False

    async def __aiter__(self) -> AsyncIterator[PromptEvent | TokenEvent]:
        while True:
            event = await self.events.get()
            if event is None:
                return
            if isinstance(event, FirstlightError):
                raise event
            yield event
            if isinstance(event, TokenEvent) and event.finish is not None:
                return

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.on_cancel()
            self.events.put_nowait(None)


@dataclass
class SourceState:
    """What both sources let a test set and see.

    Attributes:
        streams: every one that was opened.
        refuse: raised by the next `open`s while it is set.
        ready: whether models() lists them.
    """

    served: dict[str, ServedModel]
    streams: list[QueuedStream] = field(default_factory=list)
    requests: list[SequenceRequest] = field(default_factory=list)
    refuse: FirstlightError | None = None
    ready: bool = True

    def models(self) -> Mapping[str, ServedModel]:
        return self.served if self.ready else {}

    def replicas(self) -> list[ReplicaStatus]:
        state = "ready" if self.ready else "starting"
        return [
            ReplicaStatus(f"{name}-0", name, "cpu", state, 1, 2, Statistics(running=3, pages=9))
            for name in self.served
        ]

    def _check(self, request: SequenceRequest) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)


class EngineSource(SourceState):
    """Runs models in a thread of this process, as a replica does in a process of its own."""

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        super().__init__(
            {
                name: ServedModel(name, model.engine.context_length, model.spec.vocabulary_size)
                for name, model in models.items()
            }
        )
        self._workers = {name: Worker(model.engine) for name, model in models.items()}
        self._emit: dict[int, Callable[[Event], None]] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def open(self, model: str, request: SequenceRequest) -> QueuedStream:
        self._check(request)
        loop = asyncio.get_running_loop()
        number, worker = next(self._numbers), self._workers[model]
        stream = QueuedStream(lambda: self._jobs.put(lambda: worker.cancel(number)))
        self._emit[number] = lambda event: _put(loop, stream, event)
        self._jobs.put(lambda: worker.start(Start(number, request)))
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            busy = any(worker.busy for worker in self._workers.values())
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(block=not busy)
                if job is None:
                    return
                job()
                continue
            for worker in self._workers.values():
                self._tell(worker.step())

    def _tell(self, steps: Steps) -> None:
        for prompt in steps.prompts:
            emit = self._emit[prompt.sequence]
            emit(PromptEvent(prompt.cached_tokens, prompt.scores))
            if prompt.finish is not None:
                emit(None)
        for token in steps.tokens:
            self._emit[token.sequence](TokenEvent(token.token_id, token.finish, token.score))
        for refusal in steps.refusals:
            self._emit[refusal.sequence](error_from(refusal))


def _put(loop: asyncio.AbstractEventLoop, stream: QueuedStream, event: Event) -> None:
    with contextlib.suppress(RuntimeError):  # the server, and its loop, have ended
        loop.call_soon_threadsafe(stream.events.put_nowait, event)


class ScriptedSource(SourceState):
    """Gives these tokens to whoever asks, whatever the prompt.

    Args:
        pause: seconds between tokens.
        error: raised after the tokens.
        delay: seconds before the first token.
    """

    def __init__(
        self,
        name: str,
        token_ids: Sequence[int],
        *,
        context_length: int = 4096,
        vocabulary_size: int = 1 << 20,
        pause: float = 0.0,
        delay: float = 0.0,
        error: FirstlightError | None = None,
    ) -> None:
        super().__init__({name: ServedModel(name, context_length, vocabulary_size)})
        self.token_ids = list(token_ids)
        self.pause, self.delay, self.error = pause, delay, error
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, model: str, request: SequenceRequest) -> QueuedStream:
        self._check(request)
        stream = QueuedStream()
        task = asyncio.get_running_loop().create_task(self._play(stream, request))
        stream.on_cancel = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.streams.append(stream)
        return stream

    async def _play(self, stream: QueuedStream, request: SequenceRequest) -> None:
        await asyncio.sleep(self.delay)
        stream.events.put_nowait(PromptEvent(min(2, len(request.prompt_ids))))
        most = request.max_tokens or len(self.token_ids)
        for number, token in enumerate(self.token_ids[:most], 1):
            last = self.error is None and number in (most, len(self.token_ids))
            finish = ("length" if number == most else "stop") if last else None
            stream.events.put_nowait(TokenEvent(token, finish))
            await asyncio.sleep(self.pause)
        stream.events.put_nowait(self.error)


def overloaded(draining: bool = False) -> OverloadedError:
    return OverloadedError("the queue is full", 7.0, draining)
