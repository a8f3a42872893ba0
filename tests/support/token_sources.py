"""Token sources for tests of the HTTP side: a real engine in a thread, and one with a script."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sampler import largest, log_probabilities
from firstlight.engine.sequence import Progress
from firstlight.errors import FirstlightError
from firstlight.formats.base import Floats
from firstlight.language_model import LanguageModel
from firstlight.replica.messages import (
    LogProbability,
    SequenceRequest,
    Statistics,
    TokenScore,
)
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
        self._models = models
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def open(self, model: str, request: SequenceRequest) -> QueuedStream:
        self._check(request)
        loop = asyncio.get_running_loop()
        stream = QueuedStream()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(stream.events.put_nowait, event)

        language_model = self._models[model]
        self._jobs.put(lambda: _start(language_model, request, stream, emit))
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        busy = False
        while True:
            try:
                job = self._jobs.get(block=not busy)
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                job()
            steps = [model.engine.step() for model in self._models.values()]
            busy = any(steps)


def _start(
    model: LanguageModel,
    request: SequenceRequest,
    stream: QueuedStream,
    emit: Callable[[Event], None],
) -> None:
    asked = request.sampling
    names = SamplingParameters.__dataclass_fields__
    sampling = SamplingParameters(**{name: getattr(asked, name) for name in names})
    stop = StopConditions(request.max_tokens, frozenset(request.end_ids))
    begun = False

    def receive(progress: Progress) -> bool:
        nonlocal begun
        if progress.token_id is None:
            return False
        if not begun:
            begun = True
            emit(PromptEvent(0, scores))
        wanted = request.log_probabilities
        score = None
        if wanted is not None and progress.logits is not None:
            score = _score(progress.logits, progress.token_id, wanted)
        emit(TokenEvent(progress.token_id, progress.sequence.finish, score))
        return stream.cancelled

    try:
        scores = None
        if request.prompt_log_probabilities is not None:
            logits = model.engine.logits(request.prompt_ids)
            scores = [
                _score(row, token, request.prompt_log_probabilities)
                for row, token in zip(logits, request.prompt_ids[1:], strict=False)
            ]
        sequence = model.engine.add(
            request.prompt_ids, sampling, stop, request.log_probabilities is not None, receive
        )
        if sequence.finish is not None:
            emit(PromptEvent(0, scores))
            emit(None)
    except FirstlightError as error:
        emit(error)


def _score(logits: Floats, token: int, wanted: int) -> TokenScore:
    values = log_probabilities(logits)
    return TokenScore(
        float(values[token]),
        [LogProbability(int(each), float(values[each])) for each in largest(values, wanted)],
    )


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
