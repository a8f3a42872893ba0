"""What holds for all tests.

Hypothesis searches the same examples each time where CI is set, so that a change is judged by what
it changes; new ones each time elsewhere, where somebody can look at what they find.

firstlight's cache is a folder of the tests' own, which is kept between runs as the real model's
file is (tests/support/gemma.py): packing that anew in every process would cost more than a test.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "explore")

os.environ["FIRSTLIGHT_CACHE"] = str(
    Path(tempfile.gettempdir()) / f"firstlight-tests-{os.getuid()}" / "cache"
)

# A shell starts background jobs with Ctrl-C ignored, which programs that tests interrupt would
# inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_COMPILE = ("native", "triton")
"""Folders whose few tests take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that compile for minutes come first, then those with most tests: workers take whole
    files, and what is begun last should not keep one of them long after the others."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.parent.name not in _COMPILE, -tests[item.path]))
