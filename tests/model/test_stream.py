"""What keys and values are kept in."""

from __future__ import annotations

from firstlight.model.stream import VALUE_BYTES, state_dtype


def test_state_dtype() -> None:
    assert state_dtype("auto") == "bfloat16"
    assert state_dtype("auto", exact=True) == "float32"
    for asked in VALUE_BYTES:
        assert state_dtype(asked) == state_dtype(asked, exact=True) == asked
