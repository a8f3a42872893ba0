"""Conversations: from a pipe in this process, and in a real terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

import firstlight
from tests.support.command import Terminal, assert_refused
from tests.support.tiny_chat import TEMPLATE, token_id, write_chat_model

Start = Callable[..., Terminal]


def always(text: str) -> list[str]:
    """Options that make every token the one of this character."""
    return ["--ignore-end", "--logit-bias", f"{token_id(text)}=1000"]


@pytest.fixture(scope="module")
def model(chat_model: Path) -> firstlight.LanguageModel:
    return firstlight.load(chat_model)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that chats for minutes if nobody stops it; the message "long" has a long prefill."""
    template = "{% if messages[-1].content == 'long' %}{{ 'x' * 190000 }}{% endif %}" + TEMPLATE
    folder = tmp_path_factory.mktemp("long")
    return write_chat_model(folder, context_length=200_000, template=template)


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages, the user's first and then in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    for index, text in enumerate(texts):
        messages.append({"role": ("user", "assistant")[index % 2], "content": text})
    return messages


# From a pipe ------------------------------------------------------------------------------


def test_each_line_is_a_message_and_earlier_ones_are_remembered(commands, chat_model, model):
    done = commands("chat", chat_model, "-n", "8", stdin="Hello\n\nAnd now?\r\n")
    first = model.chat(conversation("Hello"), max_tokens=8).text
    second = model.chat(conversation("Hello", first, "And now?"), max_tokens=8).text
    assert done.code == 0
    assert done.out == f"{first}\n{second}\n"
    assert model.chat(conversation("And now?"), max_tokens=8).text != second


def test_system_message(commands, chat_model, model):
    done = commands("chat", chat_model, "-n", "8", "--system", "Be brief", stdin="Hello")
    answer = model.chat(conversation("Hello", system="Be brief"), max_tokens=8).text
    assert done.out == f"{answer}\n"
    assert answer != model.chat(conversation("Hello"), max_tokens=8).text


def test_commands_in_a_pipe(commands, chat_model, model):
    lines = ["One", "/reset", "Two", "/system Be brief", "Two", "/system", "Two", "/exit", "Three"]
    done = commands("chat", chat_model, "-n", "6", stdin="\n".join(lines))
    plain, brief = (
        model.chat(conversation("Two", system=system), max_tokens=6).text
        for system in (None, "Be brief")
    )
    one = model.chat(conversation("One"), max_tokens=6).text
    assert done.out == f"{one}\n{plain}\n{brief}\n{plain}\n"
    assert done.code == 0


def test_again_replaces_the_answer(commands, chat_model):
    options = ["-n", "6", "--temperature", "1", "--seed"]
    done = commands("chat", chat_model, *options, "1", stdin="Hi\n/again\nBye\n")
    first, again, bye = done.out.splitlines()
    assert first != again
    other = commands("chat", chat_model, *options, "2", stdin="Hi\nBye\n").out.splitlines()
    # A second attempt with seed 1 is the first with seed 2, and what follows builds on it alone.
    assert other[0] == again
    assert len(bye) > 0


def test_message_that_begins_with_a_slash(commands, chat_model, model):
    done = commands("chat", chat_model, "-n", "6", stdin=" /etc/passwd?")
    assert done.out == model.chat(conversation("/etc/passwd?"), max_tokens=6).text + "\n"


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"/unknown\n", ["/unknown", "/help", "space"]),
        (b"/again\n", ["/again", "no message"]),
        (b"\xff\xfe\n", ["standard input", "UTF-8"]),
        (b"x" * 2000, ["this message", "2,003 tokens", "512", "--context"]),
    ],
)
def test_refused_in_a_pipe(commands, chat_model, stdin, words):
    assert_refused(commands("chat", chat_model, stdin=stdin), *words)


def test_full_context_in_a_pipe(commands, chat_model):
    done = commands("chat", chat_model, *always("x"), stdin="a\nb\n")
    assert done.code == 2
    assert set(done.out) == {"x", "\n"}
    assert "/reset" in done.err
    assert "512" in done.err


def test_nothing_to_say(commands, chat_model):
    done = commands("chat", chat_model, stdin="")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_base_model_is_refused_before_its_weights_are_read(commands, tmp_path, monkeypatch):
    base = write_chat_model(tmp_path / "base", template=None)

    def never(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("firstlight.packing.load_weights", never)
    assert_refused(commands("chat", base, stdin="Hello"), "base model", "firstlight run")


def test_system_message_that_the_template_refuses(commands, tmp_path):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    folder = write_chat_model(tmp_path / "m", template=template + TEMPLATE)
    refused = commands("chat", folder, "--system", "Be brief", stdin="Hello")
    assert_refused(refused, "no system role")
    # Refused in the middle, it changes nothing; in a pipe it ends the program all the same.
    assert_refused(commands("chat", folder, stdin="/system Be brief"), "no system role")


def test_output_stays_raw_in_a_pipe(commands, chat_model):
    done = commands("chat", chat_model, "-n", "3", *always("\x1b"), stdin="Hello")
    assert done.out == "\x1b\x1b\x1b\n"


def test_true_process(chat_model, model):
    done = subprocess.run(
        [sys.executable, "-m", "firstlight", "chat", str(chat_model), "-n", "8"],
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == model.chat(conversation("Hello"), max_tokens=8).text + "\n"


# In a terminal ----------------------------------------------------------------------------


def test_history_editing_and_leaving(terminal: Start, chat_model, tmp_path):
    chat = terminal("chat", chat_model, "-n", "4", *always("x"))
    chat.see("apache-2.0")
    chat.see("/help lists commands")
    chat.say("first message")
    chat.see("xxxx\r\n")
    chat.say("second")
    chat.see("xxxx\r\n")
    # Up twice recalls the first; Home, Delete and typing edit it.
    chat.say("\x1b[A\x1b[A\x1b[H\x1b[3~F")
    chat.see("xxxx\r\n")
    # Backspace, and Ctrl-U for the whole line.
    chat.say("thord\x7f\x7f\x7fird")
    chat.see("xxxx\r\n")
    chat.say("unwanted\x15wanted")
    chat.see("xxxx\r\n")
    assert chat.leave() == 0
    kept = (tmp_path / "cache" / "chat_history").read_text()
    entered = [line[1:] for line in kept.splitlines() if line.startswith("+")]
    assert entered == ["first message", "second", "First message", "third", "wanted"]
    assert (tmp_path / "cache" / "chat_history").stat().st_mode & 0o077 == 0
    # The next conversation remembers what was typed in this one.
    later = terminal("chat", chat_model, "-n", "4", *always("x"))
    later.say("\x1b[A")
    later.see("wanted")
    later.see("xxxx\r\n")
    assert later.leave() == 0


def test_several_lines_in_a_message(terminal: Start, tmp_path):
    # A model whose template shows the message to be of two lines: it is refused otherwise.
    template = (
        "{% if messages[0].content not in ('Hello', 'one\\ntwo', 'three\\nfour') %}"
        "{{ raise_exception('unexpected') }}{% endif %}"
    )
    folder = write_chat_model(tmp_path / "m", template=template + TEMPLATE)
    chat = terminal("chat", folder, "-n", "4", *always("x"))
    chat.say("one\x1b\rtwo")  # Alt-Enter
    chat.see("xxxx\r\n")
    chat.say("/reset")
    chat.say("\x1b[200~three\nfour\x1b[201~")  # pasted
    chat.see("xxxx\r\n")
    assert chat.leave() == 0
    assert "unexpected" not in chat.log.getvalue()


def test_interrupt_ends_one_answer(terminal: Start, long_model):
    chat = terminal("chat", long_model, *always("x"))
    chat.say("Hello")
    chat.see("x{20}")
    chat.interrupt()
    chat.see("stopped")
    chat.say("again please")
    chat.see("x{20}")
    chat.interrupt()
    chat.see("stopped")
    # At the prompt it drops the line, no more.
    chat.prompt()
    chat.send("half a mess")
    chat.see("mess")
    chat.interrupt()
    assert chat.leave() == 0
    assert "Traceback" not in chat.log.getvalue()


def test_interrupt_within_a_long_prefill(terminal: Start, long_model):
    chat = terminal("chat", long_model, "-n", "4", *always("x"))
    chat.say("long")
    # The prefill takes minutes; a second into it none of the answer has come.
    chat.child.expect_exact("\x1b[?2004l")
    with pytest.raises(pexpect.TIMEOUT):
        chat.child.expect("x", timeout=1)
    chat.interrupt()
    chat.see("stopped before the answer began")
    chat.say("short")
    chat.see("xxxx\r\n")
    assert chat.leave() == 0


def test_commands_in_a_terminal(terminal: Start, chat_model):
    chat = terminal("chat", chat_model, "-n", "4", *always("x"))
    chat.say("/help")
    for word in ("/reset", "/system", "/again", "/exit", "Ctrl-C", "Alt-Enter"):
        chat.see(word)
    chat.say("/unknown")
    chat.see("is no command")
    chat.say("/again")
    chat.see("no message yet")
    chat.say("/system Be brief")
    chat.see("begins anew")
    chat.say("Hello")
    chat.see("xxxx\r\n")
    chat.say("/again")
    chat.see("xxxx\r\n")
    chat.say("/reset")
    chat.see("forgotten")
    chat.prompt()
    chat.send("/exit\r")
    assert chat.exit_code() == 0


def test_full_context_is_said_and_the_chat_goes_on(terminal: Start, chat_model):
    chat = terminal("chat", chat_model, *always("x"))
    chat.say("Hello")
    chat.see("x{100}")
    chat.see("context is full: /reset")
    chat.say("More")
    chat.see("the conversation: has 5.. tokens with this message")
    chat.see("/reset")
    chat.say("/reset")
    chat.see("forgotten")
    chat.say("Hello")
    chat.see("context is full")
    assert chat.leave() == 0


def test_model_cannot_drive_the_terminal(terminal: Start, chat_model):
    chat = terminal("chat", chat_model, "-n", "3", *always("\x1b"))
    chat.say("Hello")
    chat.see(r"\\x1b\\x1b\\x1b\r\n")
    assert chat.leave() == 0


def test_cache_that_cannot_be_written(terminal: Start, chat_model, tmp_path):
    (tmp_path / "file").touch()
    chat = terminal(
        "chat", chat_model, "-n", "4", *always("x"), FIRSTLIGHT_CACHE=str(tmp_path / "file")
    )
    chat.say("Hello")
    chat.see("xxxx\r\n")
    chat.say("\x1b[A")  # the history lasts as long as the program
    chat.see("xxxx\r\n")
    assert chat.leave() == 0


def test_answers_into_a_file(terminal: Start, chat_model, tmp_path):
    """The prompt stays on the terminal where standard output goes elsewhere."""
    file = tmp_path / "answers"
    chat = terminal("chat", chat_model, "-n", "4", *always("x"), output=file)
    chat.say("Hello")
    assert chat.leave() == 0
    assert file.read_text() == "xxxx\n"


def test_terminal_that_can_do_nothing(terminal: Start, chat_model):
    chat = terminal("chat", chat_model, "-n", "4", *always("x"), TERM="dumb")
    chat.see("> ")
    chat.send("Hello\r")
    chat.see("xxxx\r\n")
    chat.see("> ")
    chat.send("/exit\r")
    assert chat.exit_code() == 0
    assert "\x1b[2m" not in chat.log.getvalue()
