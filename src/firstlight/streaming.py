"""Generations for asynchronous code: a thread steps the engine, an event loop gets the pieces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

from firstlight.engine.engine import Engine
from firstlight.generation import Generation, Piece

# Pieces that have come; None after the last; or why there are no more.
_Event = list[Piece] | BaseException | None


class PieceStream:
    """One generation's pieces, to be iterated once, in the event loop that opened it."""

    def __init__(self, make: Callable[[], Generation]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._generation: Generation | None = None
        self._sent = 0
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            for piece in event:
                yield piece

    def close(self) -> None:
        """End the generation; its pages are free before the next step. Does not wait."""
        self._closed = True
        if self._generation is not None:
            self._generation.cancel()

    # Called by the thread that steps -----------------------------------------------------------

    def begin(self) -> bool:
        """Start the generation; False where that failed, of which the loop is told."""
        try:
            self._generation = self._make()
        except Exception as error:
            self._tell(error)
            return False
        if self._closed:
            self._generation.cancel()
        return True

    def flush(self) -> bool:
        """Hand on the pieces that have come; whether more will come."""
        assert self._generation is not None
        ended, error = self._generation.ended, self._generation.error
        pieces = self._generation.pieces(self._sent)
        self._sent += len(pieces)
        if pieces:
            self._tell(pieces)
        if ended:
            self._tell(error)
        return not ended

    def fail(self, error: BaseException) -> None:
        """Hand on what has kept the engine from going on."""
        self.close()
        self._tell(error)

    def _tell(self, event: _Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, so nobody listens
            self.close()


class StreamDriver:
    """Steps an engine in a thread of its own for as long as streams are open."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._opened: list[PieceStream] = []
        self._thread: threading.Thread | None = None

    def open(self, make: Callable[[], Generation]) -> PieceStream:
        """The stream of a generation that `make` starts, in the driver's thread."""
        stream = PieceStream(make)
        with self._lock:
            self._opened.append(stream)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="firstlight-engine", daemon=True
                )
                self._thread.start()
        return stream

    def _run(self) -> None:
        streams: list[PieceStream] = []
        while True:
            with self._lock:
                opened, self._opened = self._opened, []
                if not opened and not streams:
                    self._thread = None
                    return
            streams += [stream for stream in opened if stream.begin()]
            try:
                self._engine.step()
                self._engine.let_others_step()
            except BaseException as error:
                for stream in streams:
                    stream.fail(error)
                streams = []
            streams = [stream for stream in streams if stream.flush()]
