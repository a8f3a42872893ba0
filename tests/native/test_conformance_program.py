"""The native conformance program in plain C++ here, and what it says of wrong kernels."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.native import build_conformance, require_commands, run_conformance


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the loops that compilers without vector types get; the quickest to build."""
    require_commands("c++", package="g++")
    return build_conformance(tmp_path_factory.mktemp("plain"), "-DFIRSTLIGHT_PLAIN_VECTORS=ON")


def _ends_with(code: int, *command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_plain_kernels(program: Path, cases: Path) -> None:
    out = run_conformance(program, cases)
    assert "1 levels: agreed" in out
    assert run_conformance(program, "--levels").split() == ["baseline"]


def test_another_expectation_is_not_met(program: Path, quick_cases: Path, tmp_path: Path) -> None:
    """One bit of the last case's expected result, an exact copy, turned over."""
    data = bytearray(quick_cases.read_bytes())
    data[-1] ^= 1
    changed = tmp_path / "changed.bin"
    changed.write_bytes(data)
    out = _ends_with(1, program, changed)
    assert "FAILED baseline: take_rows/rows on" in out
    assert "off by" in out


def test_a_kernel_without_cases_has_not_passed(program: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.bin"
    empty.write_bytes(b"firstlight cases 2\n")
    assert "linear/stored: no cases" in _ends_with(1, program, empty)


@pytest.mark.parametrize("length", [0, 19, 40, 5000, -1])
def test_a_file_that_is_not_whole(
    program: Path, quick_cases: Path, tmp_path: Path, length: int
) -> None:
    cut = tmp_path / "cut.bin"
    data = quick_cases.read_bytes()[:length]
    cut.write_bytes(data)
    expected = 1 if data == b"firstlight cases 2\n" else 2
    _ends_with(expected, program, cut)


def test_sizes_in_a_file_are_not_believed(program: Path, tmp_path: Path) -> None:
    text = struct.pack("<I", 1) + b"x"
    huge = tmp_path / "huge.bin"
    array = text + b"f" + struct.pack("<Iqq", 2, 1 << 31, 1 << 31)
    case = text + text + struct.pack("<dI", 0, 1) + array
    huge.write_bytes(b"firstlight cases 2\n" + case)
    assert "too large" in _ends_with(2, program, huge)


def test_an_unknown_option_or_level_is_refused(program: Path, quick_cases: Path) -> None:
    assert "unknown option" in _ends_with(2, program, quick_cases, "--fast", "1")
    assert "no such instruction level" in _ends_with(2, program, quick_cases, "--level", "x")
    assert "name a file" in _ends_with(2, program)
