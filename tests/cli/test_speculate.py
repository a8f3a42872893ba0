"""`--speculate`: what is said of it, and that it reaches the engine of every command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from firstlight.replica.messages import ModelOptions
from firstlight.replica.process import load
from tests.support.command import Commands, assert_refused
from tests.support.prediction_layers import with_good_predictor
from tests.support.tiny_chat import VOCABULARY_SIZE
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def predicting(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3 that predicts well, with a tokenizer."""
    folder = tmp_path_factory.mktemp("predicting")
    plain = tiny_model("deepseek_v3")
    tiny = replace(plain, changes={**plain.changes, "vocab_size": VOCABULARY_SIZE})
    with_good_predictor(tiny, noise=0.2).write(folder)
    for path in chat_model.iterdir():
        if path.name != "config.json" and path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    return folder


def test_run_says_how_many_guesses_were_right(commands: Commands, predicting: Path) -> None:
    results = {}
    for how in ("off", "mtp"):
        done = commands(
            "run", predicting, "Hello", "-n", "50", "--ignore-end", "--json", "--speculate", how
        )
        results[how] = json.loads(done.out)
    assert results["mtp"]["token_ids"] == results["off"]["token_ids"]
    assert results["off"]["speed"]["proposed_tokens"] == 0
    speed = results["mtp"]["speed"]
    assert 5 < speed["accepted_tokens"] <= speed["proposed_tokens"]
    words = ("run", predicting, "Hello", "-n", "50", "--ignore-end", "--verbose")
    line = commands(*words, "--speculate", "mtp").err
    assert f"{speed['accepted_tokens']} of {speed['proposed_tokens']} guesses right" in line


def test_chat_takes_it(commands: Commands, predicting: Path) -> None:
    outputs = {
        how: commands("chat", predicting, "-n", "20", "--speculate", how, stdin="Hello\n").out
        for how in ("off", "auto", "3", "mtp")
    }
    assert len(set(outputs.values())) == 1


def test_a_replica_takes_it(predicting: Path) -> None:
    """What `serve` sends to the process of a replica."""
    options = ModelOptions(str(predicting), speculation="mtp", cache=False, tune=None)
    sent = msgspec.json.decode(msgspec.json.encode(options), type=ModelOptions)
    assert sent == options
    worker, _ = load("numpy", sent)
    assert worker.engine.decoder.spec.predictor is not None


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_model_without_a_predictor(commands: Commands, chat_model: Path, command: str) -> None:
    done = commands(command, chat_model, "--speculate", "mtp", stdin="Hello\n")
    assert_refused(done, "no layer of multi-token prediction")


@pytest.mark.parametrize("how", ["sometimes", "-1", "65", "2.5", ""])
@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_what_is_no_way_to_guess(
    commands: Commands, chat_model: Path, command: str, how: str
) -> None:
    port = ("--port", "0") if command == "serve" else ()
    done = commands(command, chat_model, *port, f"--speculate={how}", stdin="Hello\n")
    assert_refused(done, "speculation")
