"""What keys and values are kept in."""

from __future__ import annotations

import pytest

from firstlight.errors import RequestError
from firstlight.model.stream import VALUE_BYTES, state_dtype


def test_state_dtype() -> None:
    assert state_dtype("auto") == "bfloat16"
    assert state_dtype("auto", exact=True) == "float32"
    for asked in VALUE_BYTES:
        assert state_dtype(asked) == asked
    assert state_dtype("float32", exact=True) == "float32"


def test_exactness_and_rounded_state_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="exact excludes"):
        state_dtype("bfloat16", exact=True)
