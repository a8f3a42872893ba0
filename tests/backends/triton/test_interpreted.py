"""Kernels under Triton's interpreter, which must be chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

_FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
_ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="they run by themselves")
@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_kernels_under_the_interpreter(file: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-m", "not slow"),
            *("-p", "no:xdist", "-p", "no:cacheprovider", str(file)),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=_ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
