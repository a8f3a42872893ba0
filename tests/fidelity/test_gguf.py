"""GGUF files of every family give the logits of the model they were converted from.

The files are written here, after llama.cpp's conventions. Where transformers reads a family's GGUF
files by itself, it reads ours, which shows that the conventions are met and not only our reading of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import continuation, load_decoder, logits
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_gguf import expressible, write_gguf
from tests.support.tiny_models import NEW_TOKENS, TINY_MODELS, TinyModel, prompt, tiny_model

TOLERANCE = 1e-4

MODELS = {model.name: found for model in TINY_MODELS if (found := expressible(model)) is not None}
NAMES = list(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_gguf_gives_the_logits_and_tokens_of_the_original(
    make: Callable[[TinyModel], TinyCheckpoint], tmp_path: Path, name: str, device: str
) -> None:
    tiny = MODELS[name]
    original = make(tiny)
    path = write_gguf(tiny, original.reference, tmp_path / "model.gguf")
    decoder = load_decoder(path, device)
    found = logits(decoder, prompt(), chunk=37)
    assert np.abs(found - original.logits).max() < TOLERANCE
    greedy = continuation(decoder, prompt(), NEW_TOKENS)
    assert greedy.token_ids == original.continuation.token_ids


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("deepseek")])
def test_older_files_of_deepseek_have_keys_and_values_in_one(
    make: Callable[[TinyModel], TinyCheckpoint], tmp_path: Path, name: str, device: str
) -> None:
    tiny = MODELS[name]
    original = make(tiny)
    path = write_gguf(tiny, original.reference, tmp_path / "model.gguf", old=True)
    found = logits(load_decoder(path, device), prompt(), chunk=37)
    assert np.abs(found - original.logits).max() < TOLERANCE


# transformers maps few of a GGUF file's keys and leaves the rest at its defaults, so these have
# the sizes, caps and scales of the defaults. Heads of the default sizes are wide, and so few.
_WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1}
READ_BY_TRANSFORMERS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128, **_WIDE},
    "gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **_WIDE,
    },
    "gemma3": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_parameters": None,
        **_WIDE,
    },
    "phi3": {"sliding_window": None},
}


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_file_alike(
    make: Callable[[TinyModel], TinyCheckpoint], tmp_path: Path, name: str
) -> None:
    tiny = tiny_model(name)
    tiny = replace(tiny, changes={**tiny.changes, **READ_BY_TRANSFORMERS[name]})
    original = make(tiny)
    path = write_gguf(tiny, original.reference, tmp_path / "model.gguf")
    read = reference_logits(load_reference(tmp_path, gguf_file=path.name), prompt())
    assert np.abs(read - original.logits).max() < TOLERANCE
    found = logits(load_decoder(path, "numpy"), prompt())
    assert np.abs(found - read).max() < TOLERANCE
