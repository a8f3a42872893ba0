"""What may reach a terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.cli.terminal import dim, harmless, is_terminal, json_text, one_line

any_text = st.text(st.characters(exclude_categories=()))  # half surrogate pairs too


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(any_text)
def test_no_control_character_is_left(text):
    shown = harmless(text)
    assert not [c for c in shown if (c < " " or "\x7f" <= c <= "\x9f") and c not in "\n\t"]
    if text.isprintable():
        assert shown == text


def test_how_control_characters_look():
    assert harmless("a\x1b[31mb\x9b2J\x00\x7f") == "a\\x1b[31mb\\x9b2J\\x00\\x7f"
    assert harmless("one\r\ntwo\tthree\rfour") == "one\ntwo\tthreefour"
    assert harmless("多 🌟 é") == "多 🌟 é"


@given(any_text)
def test_one_line_is_one(text):
    assert len(one_line(f"a{text}b").splitlines()) == 1


@given(
    st.recursive(
        any_text | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(any_text, x)
    )
)
def test_json_says_the_same_without_controls(value):
    line = json_text(value)
    assert json.loads(line) == value
    line.encode()
    assert not [c for c in line if c < " " or "\x7f" <= c <= "\x9f"]


def test_json_is_readable():
    assert json_text({"text": "多 é"}) == '{"text": "多 é"}'


def test_dim(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert dim("a\x1bb", Screen()) == "\x1b[2ma\\x1bb\x1b[0m"
    assert dim("a\x1bb", io.StringIO()) == "a\\x1bb"
    monkeypatch.setenv("NO_COLOR", "1")
    assert dim("a", Screen()) == "a"


def test_is_terminal():
    assert is_terminal(Screen())
    assert not is_terminal(io.StringIO())
    assert not is_terminal(None)
