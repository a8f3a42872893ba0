"""Kernels serve only where they agreed with the definition, and the verdict is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstlight.backends.base import Backend, Kernel
from firstlight.ops.contract import get_op
from firstlight.verify.trust import SKIP_VARIABLE, distrusted_kernels


class _Counted:
    """A kernel that counts its calls."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run, self.calls = run, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.run(*arguments)


def _doubled(x: Any, factor: float) -> Any:
    return 2 * get_op("scale").definition(x, factor)


class _Chip(Backend):
    """A device whose identity the test decides."""

    chip = "a chip"

    def identity(self) -> str:
        return self.chip


@pytest.fixture(autouse=True)
def _not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SKIP_VARIABLE, raising=False)


@pytest.fixture
def right() -> _Counted:
    return _Counted(get_op("add").definition)


@pytest.fixture
def backend(right: _Counted) -> _Chip:
    return _Chip((Kernel("add", "right", right), Kernel("scale", "wrong", _doubled)))


def test_wrong_kernels_are_named(backend: Backend, tmp_path: Path) -> None:
    (found,) = distrusted_kernels(backend, directory=tmp_path)
    assert (found.op, found.kernel) == ("scale", "wrong")
    assert "scale/wrong" in found.why
    assert "off by" in found.why


def test_the_verdict_is_kept(backend: Backend, right: _Counted, tmp_path: Path) -> None:
    first = distrusted_kernels(backend, directory=tmp_path)
    calls = right.calls
    assert calls > 0
    assert distrusted_kernels(backend, directory=tmp_path) == first
    assert right.calls == calls
    assert len(list(tmp_path.iterdir())) == 1


def test_another_device_or_build_is_checked_anew(
    backend: _Chip, right: _Counted, tmp_path: Path
) -> None:
    distrusted_kernels(backend, directory=tmp_path)
    calls = right.calls
    backend.chip = "a chip, newer build"
    distrusted_kernels(backend, directory=tmp_path)
    assert right.calls > calls


def test_another_set_of_kernels_is_checked_anew(
    backend: _Chip, right: _Counted, tmp_path: Path
) -> None:
    distrusted_kernels(backend, directory=tmp_path)
    calls = right.calls
    assert distrusted_kernels(_Chip((Kernel("add", "right", right),)), directory=tmp_path) == ()
    assert right.calls > calls


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', '{"key": {}, "distrusted": [1]}'])
def test_a_damaged_verdict_is_made_anew(
    backend: _Chip, right: _Counted, tmp_path: Path, damage: str
) -> None:
    first = distrusted_kernels(backend, directory=tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_text(damage)
    assert distrusted_kernels(backend, directory=tmp_path) == first
    assert file.read_bytes() == good


def test_a_verdict_that_cannot_be_kept_is_done_without(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = distrusted_kernels(backend, directory=tmp_path / "file" / "below")
    assert found.op == "scale"


def test_the_check_can_be_skipped(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SKIP_VARIABLE, "1")
    assert distrusted_kernels(backend, directory=tmp_path) == ()
    monkeypatch.setenv(SKIP_VARIABLE, "0")
    assert len(distrusted_kernels(backend, directory=tmp_path)) == 1


def test_without_kernels_nothing_is_checked(tmp_path: Path) -> None:
    assert distrusted_kernels(Backend(), directory=tmp_path) == ()
    assert not list(tmp_path.iterdir())
