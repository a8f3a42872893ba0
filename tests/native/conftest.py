"""The cases that native programs check kernels on."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.verify.case_file import write_cases


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every case."""
    path = tmp_path_factory.mktemp("cases") / "all.bin"
    assert write_cases(path) > 500
    return path


@pytest.fixture(scope="session")
def quick_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the short selection."""
    path = tmp_path_factory.mktemp("cases") / "quick.bin"
    assert write_cases(path, quick=True) > 100
    return path
