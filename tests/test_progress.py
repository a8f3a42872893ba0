"""Progress bars: silent where nobody watches, and right where somebody does."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from firstlight import progress as module
from firstlight.progress import no_progress, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts a terminal in the place of standard error.

    To be called in the test, because pytest sets standard error anew after the fixtures.
    """

    def call() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(module, "_DELAY_SECONDS", 0.0)
        monkeypatch.setenv("TERM", "xterm")
        return terminal

    return call


def wait_for(terminal: Terminal, text: str) -> bool:
    """Whether the text appears within a generous time."""
    for _ in range(500):
        if text in terminal.getvalue():
            return True
        time.sleep(0.01)
    return False


def test_a_bar_shows_what_is_done(attach):
    terminal = attach()
    with progress("Reading [weights]", total=3, unit="files") as advance:
        advance(3)
        advance(-1)
        assert wait_for(terminal, "Reading [weights]")
        assert wait_for(terminal, "2/3")
        assert wait_for(terminal, "files")


def test_bytes(attach):
    terminal = attach()
    with progress("Reading", total=2_000_000) as advance:
        advance(1_000_000)
        assert wait_for(terminal, "1.0/2.0 MB")


def test_unknown_total(attach):
    terminal = attach()
    with progress("Waiting"):
        assert wait_for(terminal, "Waiting")


def test_many_threads(attach):
    terminal = attach()
    with progress("Adding", total=4000, unit="steps") as advance:

        def add() -> None:
            for _ in range(1000):
                advance(1)

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wait_for(terminal, "4000/4000")


def test_short_work_shows_nothing(attach, monkeypatch):
    terminal = attach()
    monkeypatch.setattr(module, "_DELAY_SECONDS", 60.0)
    with progress("Reading", total=1) as advance:
        advance(1)
    assert terminal.getvalue() == ""


def test_bar_ends_when_the_work_fails(attach):
    terminal = attach()
    before = threading.active_count()
    with pytest.raises(ValueError), progress("Reading", total=1):
        assert wait_for(terminal, "Reading")
        raise ValueError
    assert terminal.getvalue().endswith("\x1b[2K"), "the bar's line is cleared"
    for _ in range(500):  # a thread that was told to end needs a moment for it
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("how", ["quiet", "no terminal", "no stream", "no_progress"])
def test_silence(attach, monkeypatch, how):
    terminal = attach()
    factory = no_progress if how == "no_progress" else progress
    if how == "quiet":
        monkeypatch.setattr(module, "_quiet", False)  # restored afterwards
        module.set_quiet(True)
    elif how == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    elif how == "no stream":
        monkeypatch.setattr(sys, "stderr", None)
    with factory("Reading", total=1) as advance:
        advance(1)
        time.sleep(0.05)
    assert terminal.getvalue() == ""


def test_rich_is_not_imported_in_silence():
    script = (
        "import sys; from firstlight.progress import progress\n"
        "with progress('a', total=1) as advance: advance(1)\n"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.PIPE)
