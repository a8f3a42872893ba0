"""`firstlight run` with a model made for chat; what reaches a terminal, a pipe, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import firstlight
from tests.support.command import assert_refused
from tests.support.tiny_chat import token_id, write_chat_model


def always(text: str) -> list[str]:
    """Options that make every token the one of this character."""
    return ["--ignore-end", "--logit-bias", f"{token_id(text)}=1000"]


@pytest.fixture(scope="module")
def model(chat_model: Path) -> firstlight.LanguageModel:
    return firstlight.load(chat_model)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("long"), context_length=100_000)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_prompt_is_put_into_the_template(commands, chat_model, model):
    done = commands("run", chat_model, "Hello", "-n", "8")
    assert done.out == model.chat([user("Hello")], max_tokens=8).text + "\n"
    assert done.err == ""


def test_raw_prompt_is_continued(commands, chat_model, model):
    done = commands("run", chat_model, "Hello", "-n", "8", "--raw", "--json")
    result = json.loads(done.out)
    assert result["prompt_token_ids"] == [token_id(character) for character in "Hello"]
    assert result["text"] == model.generate("Hello", max_tokens=8).text


def test_system_message(commands, chat_model, model):
    done = commands("run", chat_model, "Hello", "-n", "8", "--system", "Be brief")
    messages = [{"role": "system", "content": "Be brief"}, user("Hello")]
    assert done.out == model.chat(messages, max_tokens=8).text + "\n"


def test_base_model_continues_by_itself(commands, tmp_path, model):
    base = write_chat_model(tmp_path / "base", template=None)
    done = commands("run", base, stdin="Hello\n")
    assert done.out == model.generate("Hello", max_tokens=256).text + "\n"


def test_control_characters_in_a_pipe_stay_as_they_are(commands, chat_model):
    done = commands("run", chat_model, "Hello", "-n", "2", *always("\x1b"))
    assert done.out == "\x1b\x1b\n"


def test_json_holds_no_raw_control_character(commands, chat_model):
    for character in ("\x1b", "\x7f"):
        done = commands("run", chat_model, "\x9b", "-n", "2", "--json", *always(character))
        assert json.loads(done.out)["text"] == 2 * character
        assert json.loads(done.out)["prompt"] == "\x9b"
        assert done.out.removesuffix("\n").isprintable()


def test_half_a_surrogate_pair_is_no_crash(commands, chat_model):
    # What the shell hands over where an argument is not UTF-8.
    done = commands("run", chat_model, "caf\udce9", "-n", "2", "--json")
    assert json.loads(done.out)["prompt"] == "caf\udce9"


def test_terminal_shows_prompt_and_answer(terminal, chat_model):
    run = terminal("run", chat_model, "Hel\x1blo\x9b\x07", "-n", "4", *always("x"))
    shown = run.see("xxxx\r\n")
    assert "\x1b[2mHel\\x1blo\\x9b\\x07\x1b[0m\r\n" in shown
    run.see("apache-2.0|tokens/s")
    assert run.exit_code() == 0


@pytest.mark.parametrize("settings", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_without_colours(terminal, chat_model, settings):
    run = terminal("run", chat_model, "Hello", "-n", "4", *always("x"), **settings)
    run.see("Hello\r\nxxxx\r\n")
    assert run.exit_code() == 0
    assert "\x1b" not in run.log.getvalue()


@pytest.mark.parametrize(
    ("character", "shown"), [("\x1b", r"\x1b"), ("\x07", r"\x07"), ("\x7f", r"\x7f"), ("\r", "")]
)
def test_model_cannot_drive_the_terminal(terminal, chat_model, character, shown):
    run = terminal(
        "run", chat_model, "Hello", "-n", "3", "--quiet", *always(character), NO_COLOR="1"
    )
    assert run.exit_code() == 0
    assert run.log.getvalue() == 3 * shown + "\r\n"


def test_model_may_use_lines_and_tabs(terminal, chat_model):
    run = terminal("run", chat_model, "Hello", "-n", "2", "--quiet", *always("\t"))
    assert run.exit_code() == 0
    assert run.log.getvalue().replace(" ", "") in ("\t\t\r\n", "\r\n")  # a terminal may expand them


def test_interrupt_in_a_terminal(terminal, long_model):
    run = terminal("run", long_model, "Hello", "-n", "90000", *always("x"))
    run.see("x{20}")
    run.interrupt()
    assert run.exit_code() == 130
    assert "Traceback" not in run.log.getvalue()


def test_interrupt_in_a_pipe(long_model):
    """What came stays; exit code 130; nothing else is said."""
    words = ["run", str(long_model), "Hello", "-n", "90000", *always("x")]
    process = subprocess.Popen(
        [sys.executable, "-m", "firstlight", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip(b"x") == b""
    assert err == b"\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_full_disk(chat_model):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "firstlight", "run", str(chat_model), "Hello", "-n", "2"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("firstlight: error: standard input or output: No space")
    assert len(done.stderr.splitlines()) == 1


def test_locale_that_cannot_express_the_text(chat_model):
    words = ["run", str(chat_model), "Hello", "-n", "8"]
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "firstlight", *words],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"?" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "q2_k"], ["'q2_k'", "does not write", "int4"]),
        (["--weights", "int3"], ["'int3'", "nearest", "int4"]),
        (["--weights", "q8_k"], ["'q8_k'", "activations"]),
        (["--device", "abacus"], ["abacus", "cpu"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--top-p", "0"], ["top_p"]),
        (["-n", "-1"], ["max_tokens"]),
        (["--seed", "-1"], ["seed"]),
        (["--stop", ""], ["stop"]),
        (["--context", "0"], ["context_length"]),
        (["--raw", "--system", "x"], ["--system", "--raw"]),
        (["--log-probabilities", "2"], ["--log-probabilities", "--json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_are_checked_before_the_model_is_looked_for(commands, options, words):
    """Nobody should download a model to learn of a misspelt option: this one does not exist."""
    assert_refused(commands("run", "no/such/model", "x", *options), *words)


def test_system_message_for_a_base_model(commands, tmp_path):
    base = write_chat_model(tmp_path / "base", template=None)
    assert_refused(commands("run", base, "x", "--system", "y"), "--system", "chat template")


@pytest.mark.parametrize("bias", ["1", "a=1", "1=b", "=", "1.5=2"])
def test_malformed_logit_bias(commands, chat_model, bias):
    done = commands("run", chat_model, "x", "--logit-bias", bias)
    assert done.code == 2
    assert "TOKEN_ID=BIAS" in done.err


def test_conversion_while_loading(commands, chat_model):
    for name in ("int8", "INT4", "bf16", "f16"):
        done = commands("run", chat_model, "Hello", "-n", "2", "--weights", name, *always("x"))
        assert (done.code, done.out) == (0, "xx\n")


def test_error_with_a_line_end_stays_on_one_line(commands, tmp_path):
    assert_refused(commands("run", tmp_path / "a\nb\x1b[2J.gguf", "x"), "a b\\x1b[2J.gguf")
