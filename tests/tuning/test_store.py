"""What was tuned is kept for the device and build that it was tuned on, and for no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from firstlight.backends.kernel import Choice, Parameter
from firstlight.errors import FirstlightError
from firstlight.tuning import store as store_module
from firstlight.tuning.store import Entry, Store, TuningWarning
from tests.support.fake_chip import FakeChip, FakeClock, kernel

TILE = Parameter("tile", (8, 16), 8)
ENTRY = Entry(
    op="add",
    shape=("sum", 1024),
    default=Choice("plain"),
    choice=Choice("plain", (("tile", 16),)),
    ratio=0.75,
    seconds=1e-6,
    candidates=2,
    decided=True,
    effort=0.5,
)


@pytest.fixture
def chip() -> FakeChip:
    return FakeChip((kernel("add", "plain", FakeClock(), lambda tile: 1.0, (TILE,)),))


def test_an_entry_comes_back(chip: FakeChip, tmp_path: Path) -> None:
    Store(chip, tmp_path).add(ENTRY)
    assert Store(chip, tmp_path).entries == {ENTRY.key: ENTRY}


def test_no_file_is_no_entry_and_no_complaint(chip: FakeChip, tmp_path: Path) -> None:
    assert Store(chip, tmp_path).entries == {}


def test_each_device_build_and_version_has_its_own(
    chip: FakeChip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(chip, tmp_path).add(ENTRY)
    for name, value in (("chip", "another chip"), ("build", "build 2")):
        with patch.object(chip, name, value):
            assert Store(chip, tmp_path).entries == {}
    monkeypatch.setattr(store_module, "__version__", "999")
    assert Store(chip, tmp_path).entries == {}


def test_what_was_chosen_is_applied_and_defaults_are_not(chip: FakeChip, tmp_path: Path) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    kept.add(replace(ENTRY, shape=("sum", 2048), choice=ENTRY.default))
    assert kept.apply() == 1
    assert chip.tuning() == {ENTRY.key: ENTRY.choice}


def test_two_processes_do_not_undo_each_other(chip: FakeChip, tmp_path: Path) -> None:
    one, other = Store(chip, tmp_path), Store(chip, tmp_path)
    second = replace(ENTRY, shape=("sum", 4096))
    one.add(ENTRY)
    other.add(second)
    assert Store(chip, tmp_path).entries.keys() == {ENTRY.key, second.key}


def test_entries_can_be_forgotten(chip: FakeChip, tmp_path: Path) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    kept.forget([ENTRY.key, ("add", ("sum", 1))])
    assert Store(chip, tmp_path).entries == {}


def _changed(change: dict[str, Any]) -> dict[str, Any]:
    entry = {
        "op": "add",
        "shape": ["sum", 1024],
        "default": {"kernel": "plain", "parameters": []},
        "choice": {"kernel": "plain", "parameters": [["tile", 16]]},
        "ratio": 0.75,
        "seconds": 1e-6,
        "candidates": 2,
        "decided": True,
        "effort": 0.5,
    }
    return {**entry, **change}


@pytest.mark.parametrize(
    "change",
    [
        {"ratio": float("nan")},
        {"ratio": "much"},
        {"seconds": -1},
        {"shape": 5},
        {"shape": [[1]]},
        {"shape": [True]},
        {"choice": None},
        {"choice": {"kernel": "plain", "parameters": [["tile"]]}},
        {"choice": {"kernel": "plain", "parameters": [["tile", 16.0]]}},
        {"choice": {"kernel": "plain", "parameters": [["tile", True]]}},
        {"candidates": None},
    ],
)
def test_entries_that_make_no_sense_are_ignored_with_a_warning(
    chip: FakeChip, tmp_path: Path, change: dict[str, Any]
) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    content = json.loads(kept.path.read_text())
    content["entries"] = [_changed(change)]
    kept.path.write_text(json.dumps(content))
    with pytest.warns(TuningWarning, match="firstlight tune"):
        assert Store(chip, tmp_path).entries == {}


@pytest.mark.parametrize(
    "choice",
    [
        {"kernel": "gone", "parameters": []},
        {"kernel": "plain", "parameters": [["tile", 17]]},
        {"kernel": "plain", "parameters": [["wings", 2]]},
    ],
)
def test_choices_that_this_device_lacks_are_left_out(
    chip: FakeChip, tmp_path: Path, choice: dict[str, Any]
) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    content = json.loads(kept.path.read_text())
    content["entries"].append(_changed({"shape": ["sum", 2], "choice": choice}))
    kept.path.write_text(json.dumps(content))
    assert Store(chip, tmp_path).entries == {ENTRY.key: ENTRY}


def test_kernels_that_lost_their_trust_are_left_out(chip: FakeChip, tmp_path: Path) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    kept.apply()
    chip.leave_out("add", "plain")
    assert chip.tuning() == {}
    assert Store(chip, tmp_path).entries == {}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"key": 1}', b"[" * 100_000])
def test_damaged_files_are_ignored_with_a_warning(
    chip: FakeChip, tmp_path: Path, data: bytes
) -> None:
    kept = Store(chip, tmp_path)
    kept.path.write_bytes(data)
    with pytest.warns(TuningWarning, match="cannot be read"):
        again = Store(chip, tmp_path)
    assert again.entries == {}
    with pytest.warns(TuningWarning):
        again.add(ENTRY)
    assert Store(chip, tmp_path).entries == {ENTRY.key: ENTRY}


def test_a_file_of_another_device_is_ignored(chip: FakeChip, tmp_path: Path) -> None:
    kept = Store(chip, tmp_path)
    kept.add(ENTRY)
    content = json.loads(kept.path.read_text())
    content["key"]["device"] = "another"
    kept.path.write_text(json.dumps(content))
    with pytest.warns(TuningWarning, match="another device"):
        assert Store(chip, tmp_path).entries == {}


def test_a_directory_that_cannot_be_written_is_an_error(chip: FakeChip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(TuningWarning):
        kept = Store(chip, tmp_path / "file" / "tuning")
    with pytest.warns(TuningWarning), pytest.raises(FirstlightError, match="cannot be written"):
        kept.add(ENTRY)
