"""`firstlight tune`, and what other commands make of its findings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firstlight import loading
from firstlight.backends.cpu.backend import CpuBackend
from firstlight.backends.kernel import Choice
from firstlight.host.ceilings import Ceilings
from firstlight.tuning import tuner
from firstlight.tuning.store import Entry, Store
from firstlight.tuning.tuner import Result
from tests.support.command import Commands, assert_refused

SHAPE = ("sum", 64)
CHOICE = Choice("vector", (("through", "extension"),))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and ceilings that take no time to measure."""
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_SKIP_KERNEL_CHECK", "1")
    monkeypatch.setattr(
        CpuBackend, "measure_ceilings", lambda self: Ceilings("a device", 1e10, {"f32": 1e11})
    )
    return tmp_path / "cache"


def entry(choice: Choice = CHOICE, ratio: float = 0.5) -> Entry:
    return Entry("add", SHAPE, Choice("vector"), choice, ratio, 1e-6, 3, True, 0.1)


def tune_json(commands: Commands, model: Path, *words: object) -> dict[str, Any]:
    done = commands("tune", model, "--json", "--seconds", "2", *words)
    assert done.code == 0, done
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_a_model_is_tuned_and_remembered(commands: Commands, chat_model: Path, cache: Path) -> None:
    report = tune_json(commands, chat_model)
    assert Path(report["file"]).parent == cache / "tuning"
    assert Path(report["file"]).exists()
    ops = {shape["op"] for shape in report["shapes"]}
    assert {"linear", "add"} <= ops
    for shape in report["shapes"]:
        assert shape["measured_now"]
        assert shape["seconds"] > 0
        assert 0 < shape["ratio"] <= 1
        if shape["choice"] == shape["default"]:
            assert shape["ratio"] == 1
        assert shape["default_seconds"] == pytest.approx(shape["seconds"] / shape["ratio"], rel=0.1)
    products = [shape for shape in report["shapes"] if shape["op"] == "linear"]
    assert all(shape["ceiling_share"] > 0 for shape in products)
    assert len({tuple(shape["shape"]) for shape in products}) == len(products)
    decided = [shape for shape in report["shapes"] if shape["decided"]]
    again = tune_json(commands, chat_model)
    known = [shape for shape in again["shapes"] if not shape["measured_now"]]
    assert len(known) >= len(decided) > 0
    anew = tune_json(commands, chat_model, "--restart")
    assert all(shape["measured_now"] for shape in anew["shapes"])


def test_the_table_shows_what_was_chosen(
    commands: Commands, chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [
        Result(entry(), 4, 0.001, 0.25, True),
        Result(replace(entry(Choice("vector"), 1.0), shape=("sum", 8)), 4, 0.0001, None, True),
    ]
    monkeypatch.setattr("firstlight.tuning.model.tune", lambda *_, **__: iter(results))
    done = commands("tune", chat_model)
    assert done.code == 0
    (header, row) = done.out.splitlines()
    assert header.split() == [
        "op",
        "and",
        "shape",
        "share",
        "chosen",
        "time",
        "gain",
        "of",
        "ceiling",
    ]
    assert "add sum 64" in row
    assert "vector(through=extension)" in row
    assert "50.0%" in row
    assert "25%" in row


def test_an_interrupt_keeps_what_was_found(
    commands: Commands, chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = tuner._tune_shape
    done_before = []

    def interrupted(*arguments: Any) -> Any:
        if len(done_before) == 3:
            raise KeyboardInterrupt
        done_before.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(tuner, "_tune_shape", interrupted)
    done = commands("tune", chat_model, "--seconds", "2")
    assert done.code == 130
    assert "3 shapes are kept" in done.err
    assert "same command goes on" in done.err
    assert "Traceback" not in done.err
    assert len(Store(CpuBackend()).entries) == 3


def test_a_device_without_kernels_has_nothing_to_tune(commands: Commands, chat_model: Path) -> None:
    done = commands("tune", chat_model, "--device", "numpy", "--json")
    assert done.code == 0
    assert json.loads(done.out)["shapes"] == []
    assert "nothing to tune" in done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--seconds", "0"), "seconds 0"),
        (("--seconds", "-3"), "seconds -3"),
        (("--seconds", "nan"), "seconds nan"),
        (("--seconds", "inf"), "seconds inf"),
        (("--device", "abacus"), "abacus"),
        (("--weights", "int3"), "int3"),
    ],
)
def test_bad_options_are_refused(
    commands: Commands, chat_model: Path, words: tuple[str, ...], complaint: str
) -> None:
    assert_refused(commands("tune", chat_model, *words), complaint)


def test_a_model_that_is_not_there_is_refused(commands: Commands, tmp_path: Path) -> None:
    assert_refused(commands("tune", tmp_path / "nowhere"), "nowhere")


def test_a_store_that_cannot_be_written_is_refused(
    commands: Commands, chat_model: Path, cache: Path
) -> None:
    cache.mkdir()
    (cache / "tuning").write_text("not a directory")
    done = commands("tune", chat_model, "--seconds", "1")
    assert_refused(done, "cannot be written")


# What loading makes of it -----------------------------------------------------------------


@pytest.fixture
def tuned(chat_model: Path) -> Iterator[Path]:
    """A model, and one shape that was tuned on this device."""
    Store(CpuBackend()).add(entry())
    yield chat_model


def test_loading_uses_what_was_tuned(tuned: Path) -> None:
    assert loading.load(tuned).backend.tuning() == {("add", SHAPE): CHOICE}


def test_loading_can_do_without(tuned: Path) -> None:
    assert loading.load(tuned, tune=None).backend.tuning() == {}


def test_loading_can_tune_first(chat_model: Path) -> None:
    backend = loading.load(chat_model, tune=1.0).backend
    entries = Store(backend).entries
    assert entries
    assert backend.tuning() == {
        key: each.choice for key, each in entries.items() if each.choice != each.default
    }


@pytest.mark.parametrize(
    ("words", "expected"), [((), 0.0), (("--no-tune",), None), (("--tune", "7"), 7.0)]
)
def test_run_says_whether_to_use_it(
    commands: Commands,
    chat_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    expected: float | None,
) -> None:
    asked = []
    real = loading.load

    def load(*arguments: Any, tune: float | None, **settings: Any) -> Any:
        asked.append(tune)
        return real(*arguments, tune=None, **settings)

    monkeypatch.setattr(loading, "load", load)
    assert commands("run", chat_model, "hello", "-n", "1", *words).code == 0
    assert asked == [expected]


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_run_refuses_no_time(commands: Commands, chat_model: Path, seconds: str) -> None:
    assert_refused(commands("run", chat_model, "hello", "--tune", seconds), f"tune {seconds}")


def test_run_warns_of_a_damaged_file_and_goes_on(commands: Commands, tuned: Path) -> None:
    Store(CpuBackend()).path.write_text("{")
    done = commands("run", tuned, "hello", "-n", "1")
    assert done.code == 0
    assert "ignored" in done.err
