"""The native conformance program: built for this machine or another, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Minutes, so that a machine that is busy with other tests does not fail them.
_BUILD_SECONDS = 1200
_RUN_SECONDS = 600


# Where this environment's own commands are, CMake and Ninja among them.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))


def require_commands(*names: str, package: str = "") -> None:
    """Skip the test, naming what is missing and where it comes from, unless all are there."""
    for name in names:
        if shutil.which(name, path=_PATH) is None:
            hint = f"; on Debian: apt-get install {package}" if package else ""
            pytest.skip(f"{name} is not installed{hint}")


def build_conformance(directory: Path, *options: str) -> Path:
    """The program, built in a directory of its own with these CMake options.

    Skips where CMake or a C++ compiler is missing.
    """
    require_commands("cmake", package="cmake")
    generator = ("-G", "Ninja") if shutil.which("ninja", path=_PATH) else ()
    configure = ("cmake", "-S", str(ROOT), "-B", str(directory), *generator)
    _run(*configure, "-DFIRSTLIGHT_PYTHON=OFF", *options, seconds=_BUILD_SECONDS)
    jobs = str(min(2, os.cpu_count() or 1))
    _run("cmake", "--build", str(directory), "--target", "conformance", "--parallel", jobs,
         seconds=_BUILD_SECONDS)  # fmt: skip
    return directory / "conformance"


def run_conformance(*command: str | Path, **environment: str) -> str:
    """What the program writes; the test fails if it does not end well."""
    return _run(*map(str, command), seconds=_RUN_SECONDS, **environment)


def _run(*command: str, seconds: int, **environment: str) -> str:
    done = subprocess.run(
        command,
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": _PATH, **environment},
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
