"""`firstlight verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.verify.fidelity import Configuration, measure_fidelity
from tests.support.command import Commands, assert_refused
from tests.support.tiny_chat import write_chat_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"), hidden_size=64)


def test_json_has_what_was_measured(commands: Commands, model: Path) -> None:
    done = commands("verify", model, "--weights", "int4", "--exact", "--tokens", "60", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    measured = measure_fidelity(model, Configuration(weights="int4", exact=True), tokens=60)
    assert report["configuration"] == {
        "device": "cpu", "weights": "int4", "state": "auto", "exact": True,
    }  # fmt: skip
    assert report["reference"] == {
        "device": "cpu", "weights": None, "state": "auto", "exact": True,
    }  # fmt: skip
    assert list(report["texts"]) == ["prose", "code", "Chinese"]
    total = report["total"]
    assert total["tokens"] == 180
    assert total["mean_divergence"] == measured.total.mean > 0
    assert total["largest_divergence"] == measured.total.most
    assert total["same_choice"] == measured.total.agreement
    assert total["perplexity"] == measured.total.perplexity
    assert total["reference_perplexity"] == measured.total.reference_perplexity


def test_table(commands: Commands, model: Path) -> None:
    done = commands("verify", model, "--weights", "int8", "--tokens", "20")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("cpu, weights int8")
    assert lines[1].startswith("beside cpu, weights as stored")
    assert lines[1].endswith("exact")
    assert [line.split()[:2] for line in lines[4:]] == [
        ["prose", "20"], ["code", "20"], ["Chinese", "20"], ["all", "60"],
    ]  # fmt: skip


def test_ones_own_texts(commands: Commands, model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("One text.\n")
    second.write_text("Another, a little longer.")
    done = commands("verify", model, "--text", first, "--text", second, "--json")
    texts = json.loads(done.out)["texts"]
    assert {name: each["tokens"] for name, each in texts.items()} == {
        str(first): 10, str(second): 25,
    }  # fmt: skip


def test_the_reference_can_be_chosen(commands: Commands, model: Path) -> None:
    words = ("verify", model, "--weights", "int4", "--exact", "--tokens", "20", "--json")
    same = commands(*words, "--reference-weights", "int4")
    assert json.loads(same.out)["total"]["mean_divergence"] == 0
    numpy = commands(*words, "--reference", "numpy")
    assert json.loads(numpy.out)["reference"]["device"] == "numpy"
    assert json.loads(numpy.out)["total"]["mean_divergence"] > 0


def test_a_limit(commands: Commands, model: Path) -> None:
    words = ("verify", model, "--weights", "int4", "--tokens", "20")
    assert commands(*words, "--limit", "1e-9").code == 1
    assert commands(*words, "--limit", "100").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "no such file"], "no such file"),
        (["--tokens", "1"], "two or more"),
        (["--limit", "-1"], "--limit"),
        (["--limit", "nan"], "--limit"),
        (["--weights", "int5"], "int5"),
        (["--reference", "abacus"], "abacus"),
        (["--exact", "--state", "bfloat16"], "exact"),
    ],
)
def test_bad_options(commands: Commands, model: Path, words: list[str], said: str) -> None:
    assert_refused(commands("verify", model, *words), said)


def test_a_text_that_is_not_utf_8(commands: Commands, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xff\xfe")
    assert_refused(commands("verify", model, "--text", path), "not UTF-8")
