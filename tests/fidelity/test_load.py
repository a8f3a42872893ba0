"""The public way in, `firstlight.load`, gives what transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import firstlight
from firstlight.errors import CheckpointError
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.tiny_checkpoints import (
    rewrite_config,
    write_checkpoint,
)
from tests.support.tiny_models import (
    FAMILIES,
    NEW_TOKENS,
    prompt,
    tiny_model,
)

Tiny = Callable[..., TinyCheckpoint]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens(tiny: Tiny, family: str, device: str) -> None:
    """From sharded bfloat16 files, the prompt in chunks of 40 tokens."""
    checkpoint = tiny(family, "bfloat16")
    assert len(list(checkpoint.folder.glob("*.safetensors"))) > 1
    model = firstlight.load(checkpoint.folder, device=device, token_budget=40, exact=True)
    assert model.spec.family == family
    found = model.logits(prompt())
    assert found.dtype == np.float32
    assert np.abs(found - checkpoint.logits).max() < 1e-4
    greedy = model.generate(prompt(), max_tokens=NEW_TOKENS, temperature=0)
    assert greedy.token_ids == checkpoint.continuation.token_ids


def test_one_file_is_read_as_well_as_shards(tiny: Tiny, tmp_path: Path) -> None:
    sharded = tiny("llama")
    folder = write_checkpoint(tiny_model("llama").build(), tmp_path, shard_size="1GB")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    found = firstlight.load(folder, device="numpy").logits(prompt())
    assert np.array_equal(found, firstlight.load(sharded.folder, device="numpy").logits(prompt()))


@pytest.mark.parametrize("changes", [{"hidden_size": 60}, {"num_hidden_layers": 3}])
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, changes: dict[str, int], device: str
) -> None:
    folder = write_checkpoint(tiny_model("llama").build(), tmp_path)
    rewrite_config(folder, changes)
    with pytest.raises(CheckpointError, match="tensor 'model"):
        firstlight.load(folder, device=device)
