"""Progress bars, in one place, for anything that may take longer than a moment.

A bar appears on standard error only where that is a terminal, only after half a second of work,
and never after `set_quiet(True)`; it disappears when the work is done. So a caller wraps every
long loop without asking whether anybody watches, and short work costs no import of rich.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Advance = Callable[[int], None]
"""Tells a bar that so many more units are done; negative takes them back. Any thread may call."""


class ProgressFactory(Protocol):
    """What functions take as their `progress` argument; `progress` below is the usual one."""

    def __call__(
        self, description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> AbstractContextManager[Advance]: ...


_DELAY_SECONDS = 0.5
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Hide (True) or allow (False) every bar that is opened from now on."""
    global _quiet
    _quiet = quiet


@contextmanager
def progress(
    description: str, total: int | None = None, *, unit: str = "bytes"
) -> Iterator[Advance]:
    """Show a bar while the block runs: `with progress("Reading", total=n) as advance: ...`.

    Args:
        description: what is being done, as a participle with its object.
        total: units of work; None where that is not known, which shows a moving bar.
        unit: "bytes" adds amounts and speed in bytes; any other word is printed after the count.
    """
    if _quiet or sys.stderr is None or not sys.stderr.isatty():
        yield _ignore
        return
    bar = _Bar(description, total, unit)
    try:
        yield bar.advance
    finally:
        bar.close()


@contextmanager
def no_progress(
    description: str, total: int | None = None, *, unit: str = "bytes"
) -> Iterator[Advance]:
    """A `ProgressFactory` that shows nothing."""
    yield _ignore


def _ignore(amount: int) -> None:
    pass


class _Bar:
    """A bar that opens itself after a delay, unless closed before."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = 0
        self._closed = False
        self._rich: RichProgress | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(_DELAY_SECONDS, self._open)
        self._timer.daemon = True
        self._timer.start()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            if self._rich is not None:
                self._rich.update(self._rich.task_ids[0], completed=self._done)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._rich is not None:
                self._rich.stop()

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        amounts: tuple[ProgressColumn, ...] = (
            (DownloadColumn(), TransferSpeedColumn())
            if self._unit == "bytes"
            else (MofNCompleteColumn(), TextColumn(self._unit))
        )
        # "markup=False": a description may hold a file name, and a name may hold brackets.
        description = TextColumn("{task.description}", markup=False)
        columns = (description, BarColumn(), *amounts, TimeRemainingColumn())
        with self._lock:
            if self._closed:
                return
            # Without redirection: what the program prints meanwhile must stay on its own stream.
            self._rich = Progress(
                *columns,
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._rich.add_task(self._description, total=self._total, completed=self._done)
            self._rich.start()
