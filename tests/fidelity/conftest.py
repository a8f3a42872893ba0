"""Each tiny checkpoint is written once a session, and its reference computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import pytest

from firstlight.backends import available_devices
from firstlight.model.decoder import Decoder
from tests.support.decode import load_decoder
from tests.support.reference import (
    Continuation,
    Floats,
    load_reference,
    reference_continuation,
    reference_logits,
)
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import (
    NEW_TOKENS,
    TinyModel,
    prompt,
    tiny_model,
)

DEVICES = ("numpy", "cpu", "torch:cpu")


class TinyCheckpoint:
    """A tiny model's files, and what transformers makes of them."""

    def __init__(self, model: TinyModel, folder: Path, dtype: str = "float32") -> None:
        self.folder = write_checkpoint(model.build(), folder, dtype=dtype)

    @cached_property
    def reference(self) -> Any:
        return load_reference(self.folder)

    @cached_property
    def logits(self) -> Floats:
        """After every token of the prompt."""
        return reference_logits(self.reference, prompt())

    @cached_property
    def continuation(self) -> Continuation:
        """Of the prompt."""
        return reference_continuation(self.reference, prompt(), NEW_TOKENS)

    def decoder(self, device: str) -> Decoder:
        """The checkpoint on a device. Few are kept at a time: each holds its files mapped, and
        with each file a descriptor."""
        return _decoder(self.folder, device)


@lru_cache(maxsize=8)
def _decoder(folder: Path, device: str) -> Decoder:
    return load_decoder(folder, device)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyCheckpoint]:
    """(name of a tiny model, dtype of its files) -> the checkpoint."""

    @cache
    def make(name: str, dtype: str = "float32") -> TinyCheckpoint:
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
        return TinyCheckpoint(tiny_model(name), folder, dtype)

    return make


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyModel], TinyCheckpoint]:
    """A checkpoint of a model that one test alone uses."""
    return lambda model: TinyCheckpoint(model, tmp_path_factory.mktemp(model.name))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every backend that a fidelity test runs on, if this machine has it."""
    name: str = request.param
    if name not in available_devices():
        pytest.skip(f"the {name} backend is not built here")
    return name
