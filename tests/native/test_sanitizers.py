"""The native kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.native import build_conformance, require_commands, run_conformance

_OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def _build(directory: Path, sanitizers: str, *options: str) -> Path:
    """Skips where the compiler has no such sanitizer, or a program with it does not start."""
    require_commands("c++", package="g++")
    source, program = directory / "empty.cpp", directory / "empty"
    source.write_text("int main() {}\n")
    flag = f"-fsanitize={sanitizers}"
    for command in (["c++", flag, str(source), "-o", str(program)], [str(program)]):
        if subprocess.run(command, capture_output=True, timeout=120).returncode:
            pytest.skip(f"no program runs here with {flag}")
    return build_conformance(directory / "build", f"-DFIRSTLIGHT_SANITIZE={sanitizers}", *options)


def test_memory_and_undefined_behaviour(tmp_path: Path, quick_cases: Path) -> None:
    """Every level of this machine, and those of AMX and AVX-VNNI, with tiles in software and with
    AVX-512's instruction; random bytes as weights of every format, too."""
    emulated = ("-DFIRSTLIGHT_EMULATE_TILES=ON", "-DFIRSTLIGHT_EMULATE_VNNI=ON")
    program = _build(tmp_path, "address,undefined", *emulated)
    out = run_conformance(program, quick_cases, "--random-bytes", "12", **_OPTIONS)
    assert "agreed" in out
    assert "runtime error" not in out


def test_threads(tmp_path: Path, quick_cases: Path) -> None:
    """Kernels of one level are enough for the pool that all share."""
    program = _build(tmp_path, "thread", "-DFIRSTLIGHT_PLAIN_VECTORS=ON")
    out = run_conformance(program, quick_cases, "--threads", "4", **_OPTIONS)
    assert "agreed" in out
    assert "WARNING: ThreadSanitizer" not in out
