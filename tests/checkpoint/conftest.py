"""Fixtures of the hub's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstlight.checkpoint.hub import fetch, parse_reference
from tests.support.hub_repositories import (
    ID,
    sharded,
)
from tests.support.hub_server import HubServer, isolated_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with isolated_hub(monkeypatch, tmp_path) as server:
        server.repositories[ID] = sharded()
        yield server


@pytest.fixture
def get(hub: HubServer, tmp_path: Path) -> Callable[..., Path]:
    """`fetch` with this test's hub and cache, and hardly any waiting."""

    def call(model: str = ID, **arguments: object) -> Path:
        reference = parse_reference(model)
        assert reference is not None
        settings = {"endpoint": hub.endpoint, "cache": tmp_path / "hub", "retry_seconds": 0.001}
        return fetch(reference, **{**settings, **arguments})  # type: ignore[arg-type]

    return call
