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
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import NEW_TOKENS, TINY_MODELS, TinyModel, prompt, tiny_model

TOLERANCE = 1e-4

# What GGUF has no keys for: dense layers among those with experts, a window outside Gemma, Phi and
# gpt-oss, dynamic scaling, layers chosen one by one, a scale of the scores that does not follow
# from the sizes, or gpt-oss's limit, and DeepSeek's magnitudes that differ, its biases, keys that
# turn in halves, and groups of experts that are not used; and what is not read yet: DeepSeek-V4.
_NOT_EXPRESSIBLE = (
    "mistral",
    "qwen2-sliding",
    "qwen3-mixed",
    "llama-dynamic",
    "smollm3-sliding",
    "mixtral-sliding",
    "qwen2_moe-partly-dense",
    "qwen3_moe-partly-dense",
    "deepseek_v3-halves",
    "deepseek_v4",
    "deepseek_v4-yarn",
)
_SCALED_BY_HEAD_SIZE = {"query_pre_attn_scalar": 12}
NAMES = [model.name for model in TINY_MODELS if model.name not in _NOT_EXPRESSIBLE]


def _expressible(name: str) -> TinyModel:
    tiny = tiny_model(name)
    if "query_pre_attn_scalar" in tiny.changes:
        tiny = replace(tiny, changes={**tiny.changes, **_SCALED_BY_HEAD_SIZE})
    if "swiglu_limit" in tiny.changes:
        tiny = replace(tiny, changes={**tiny.changes, "swiglu_limit": 7.0})
    if tiny.family == "deepseek_v2":
        changes = {"attention_bias": False, "topk_method": "group_limited_greedy"}
        tiny = replace(tiny, changes={**tiny.changes, **changes})
    if tiny.family == "deepseek_v3":
        rope = {**tiny.changes["rope_parameters"], "mscale_all_dim": 1.0}
        tiny = replace(tiny, changes={**tiny.changes, "rope_parameters": rope})
    return tiny


@pytest.mark.parametrize("name", NAMES)
def test_gguf_gives_the_logits_and_tokens_of_the_original(
    make: Callable[[TinyModel], TinyCheckpoint], tmp_path: Path, name: str, device: str
) -> None:
    tiny = _expressible(name)
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
    tiny = _expressible(name)
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
