"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Commands, Terminal
from tests.support.tiny_chat import write_chat_model


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(capsys, monkeypatch)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts a command in a terminal; its cache is this test's own."""
    opened: list[Terminal] = []

    def start(*words: object, **settings: Any) -> Terminal:
        opened.append(Terminal(tmp_path / "cache", *words, **settings))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can chat."""
    return write_chat_model(tmp_path_factory.mktemp("chat"))
