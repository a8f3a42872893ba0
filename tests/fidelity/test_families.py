"""Every family gives transformers' logits and greedy tokens, on every backend.

One tolerance serves float32 and bfloat16 checkpoints. A bfloat16 weight is a float32 number, so
both sides compute in float32 with the very same weights and differ only in the order of sums: no
rounding of the checkpoint enters the comparison. (transformers is asked for float32; left to
itself it would compute in bfloat16 and be two digits off either way.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from firstlight.backends import backend_names
from firstlight.backends.base import DEFINITION
from firstlight.model.attention_spec import IndexerSpec, LatentAttentionSpec
from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.rope import replay_length
from firstlight.model.rope_spec import DynamicScaling
from firstlight.model.spec import ModelSpec
from tests.fidelity.conftest import DEVICES, TinyCheckpoint
from tests.support.decode import PAGE_TOKENS, continuation, logits
from tests.support.reference import reference_continuation, reference_logits
from tests.support.tiny_models import NEW_TOKENS, PROMPT_TOKENS, TINY_MODELS, prompt

TOLERANCE = 1e-4
NAMES = [model.name for model in TINY_MODELS]
Tiny = Callable[..., TinyCheckpoint]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_prefill_gives_the_same_logits(tiny: Tiny, name: str, dtype: str, device: str) -> None:
    checkpoint = tiny(name, dtype)
    decoder = checkpoint.decoder(device)
    found = logits(decoder, prompt())
    assert found.dtype == np.float32
    assert _distance(found, checkpoint.logits) < TOLERANCE
    if device.startswith("torch"):
        assert not [op for op, kernel in decoder.ops.usage() if kernel == DEFINITION]


# One token at a time; chunks that do not divide a page, that are a page, and that pass one.
@pytest.mark.parametrize("chunk", [1, 7, PAGE_TOKENS, 50])
@pytest.mark.parametrize("name", NAMES)
def test_prefill_in_chunks_gives_the_same_logits(
    tiny: Tiny, name: str, chunk: int, device: str
) -> None:
    checkpoint = tiny(name)
    found = logits(checkpoint.decoder(device), prompt(), chunk)
    assert _distance(found, checkpoint.logits) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_decoding_gives_the_same_tokens_and_logits(
    tiny: Tiny, name: str, dtype: str, device: str
) -> None:
    checkpoint = tiny(name, dtype)
    found = continuation(checkpoint.decoder(device), prompt(), NEW_TOKENS, chunk=40)
    assert found.token_ids == checkpoint.continuation.token_ids
    assert len(found.token_ids) == NEW_TOKENS
    assert _distance(found.logits, checkpoint.continuation.logits) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-long"])
def test_decoding_past_the_length_at_which_frequencies_change(
    tiny: Tiny, name: str, device: str
) -> None:
    """A prompt well below, just below, at, just above and well above that length."""
    checkpoint = tiny(name)
    decoder = checkpoint.decoder(device)
    limit = _changing_length(decoder.spec)
    for length in (limit - 30, limit - 1, limit, limit + 1, limit + 20):
        tokens = prompt(length)
        expected = reference_continuation(checkpoint.reference, tokens, NEW_TOKENS)
        found = continuation(decoder, tokens, NEW_TOKENS, chunk=24)
        assert found.token_ids == expected.token_ids, length
        assert _distance(found.logits, expected.logits) < TOLERANCE, length


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-long"])
def test_long_prompts_use_the_frequencies_of_their_whole_length(
    tiny: Tiny, name: str, device: str
) -> None:
    checkpoint = tiny(name)
    decoder = checkpoint.decoder(device)
    tokens = prompt(_changing_length(decoder.spec) + 45)
    expected = reference_logits(checkpoint.reference, tokens)
    for chunk in (len(tokens), 19):
        assert _distance(logits(decoder, tokens, chunk), expected) < TOLERANCE, chunk


@pytest.mark.parametrize("name", NAMES)
def test_the_sequences_of_these_tests_are_long_enough(tiny: Tiny, name: str) -> None:
    """They pass every window, many pages, and every length that a rope scaling starts from."""
    spec = tiny(name).decoder("numpy").spec
    assert PROMPT_TOKENS > 5 * PAGE_TOKENS
    for layer in spec.layers:
        assert layer.attention.window is None or layer.attention.window < PROMPT_TOKENS / 3
        # Windows and several runs of both kinds are passed, and more of them than are chosen.
        match layer.attention:
            case CompressedAttentionSpec(near=near, compressor=runs, indexer=chosen):
                assert near < PROMPT_TOKENS / 3
                assert runs is None or 5 * runs.stride < PROMPT_TOKENS
                if runs is not None and chosen is not None:
                    assert 2 * chosen.top_k * runs.stride < PROMPT_TOKENS
            case LatentAttentionSpec(indexer=IndexerSpec(top_k=count)):
                assert count < PROMPT_TOKENS / 3
    for rope in spec.ropes():
        original = getattr(rope.scaling, "original_length", 0)
        assert original < PROMPT_TOKENS + NEW_TOKENS - 10


def test_every_backend_is_among_those_that_families_run_on() -> None:
    assert {name.partition(":")[0] for name in DEVICES} == set(backend_names())


def test_every_family_has_a_tiny_model() -> None:
    from firstlight.model.families.registry import FAMILIES

    assert {model.family for model in TINY_MODELS} == {family.name for family in FAMILIES}


def _changing_length(spec: ModelSpec) -> int:
    replayed = replay_length(spec)
    if replayed is not None:
        return replayed
    (rope,) = spec.ropes()
    assert isinstance(rope.scaling, DynamicScaling)
    return rope.scaling.original_length


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())
