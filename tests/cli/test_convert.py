"""`firstlight convert` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.cli.main import USER_ERROR, main
from tests.test_import_rules import write_tiny_llama


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_tiny_llama(folder)
    return folder


def test_a_table_of_layers_and_a_model_that_runs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(source), str(out), "--weights", "bf16"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split("  ")[0] == "layer" and "relative RMS error" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["outside", "0", "1"]
    assert all("%" in line for line in lines[1:])
    assert "in 1 files" in printed.err
    assert main(["run", str(out), "hello", "-n", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 3


def test_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(source), str(tmp_path / "out"), "--weights", "fp8", "--json"]
    assert main([*words, "--shard-size", "4KiB"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] > 2 and report["resumed"] == 0
    assert report["weights"] == "fp8"
    assert report["kept"] == ["model.embed_tokens", "lm_head"]
    assert [layer["layer"] for layer in report["layers"]] == [0, 1]
    assert 0.01 < report["relative_error"] < 0.05
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == report["files"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "q4_k"], "Use one of: int4, int8, q4_0, fp8, bf16, f16, f32"),
        (["--weights", "int8", "--shard-size", "lots"], "Give one such as 4GiB or 500MiB"),
        (["--weights", "int8", "--shard-size", "0"], "is no size"),
    ],
)
def test_options_that_make_no_sense(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    assert main(["convert", str(source), str(tmp_path / "out"), *options]) == USER_ERROR
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_exists(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), str(source), "--weights", "bf16"]) == USER_ERROR
    assert "exists already, and nothing is ever overwritten" in capsys.readouterr().err
