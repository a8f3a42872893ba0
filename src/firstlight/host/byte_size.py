"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_LONGEST = 40


def byte_size(text: str) -> int | None:
    """Bytes that a size means: "20GiB", "500 MB", "0"; None: it is no size."""
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > _LONGEST:
        return None
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
