"""The numpy backend: every op is its definition. The oracle, and the chip nobody lacks."""

from __future__ import annotations

from firstlight.backends.base import Backend


class NumpyBackend(Backend):
    """No kernels at all, so that dispatch runs every definition on the host."""

    name = "numpy"
