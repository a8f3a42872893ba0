"""DeepSeek-V3.2 beyond its logits: that it really selects, its state, company, and bad configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firstlight.backends import open_device
from firstlight.backends.base import Backend
from firstlight.engine.memory_plan import state_bytes_per_token
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import CheckpointError, UnsupportedModelError
from firstlight.model.attention_spec import LatentAttentionSpec
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.ops import SparseLatentAttentionBlock
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import to_device
from tests.fidelity.conftest import TinyCheckpoint
from tests.fidelity.test_latent_attention import V3
from tests.support.config_files import ConfigFiles, tiny_config_files
from tests.support.decode import PAGE_TOKENS, cut_and_resumed, logits, new_engine, run
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

Tiny = Callable[..., TinyCheckpoint]
NAMES = ["deepseek_v32", "deepseek_v32-few"]
# As published in V3.2's config.json, beside what it has of V3.
INDEXER = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
V32 = {**V3, **INDEXER, "model_type": "deepseek_v32"}


def test_state_is_704_values_a_token_and_layer() -> None:
    """The latent's 576 and an index key of 128: 85,888 bytes a token in bfloat16."""
    spec = spec_of_config(ConfigFiles(V32))
    assert state_bytes_per_token(spec, "bfloat16") == 61 * (576 + 128) * 2 == 85_888
    assert state_bytes_per_token(spec, "float32") == 61 * (576 + 128) * 4


def test_pages_hold_latents_and_index_keys(tiny: Tiny) -> None:
    decoder = tiny("deepseek_v32").decoder("numpy")
    assert len(decoder.groups) == 1
    state = decoder.new_state((5,), PAGE_TOKENS, "bfloat16")
    assert [[stream.shape for stream in layer] for layer in state] == [
        [(5, PAGE_TOKENS, 24 + 8), (5, PAGE_TOKENS, 12)] for _ in decoder.spec.layers
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_selected_decides(tiny: Tiny, name: str, device: str) -> None:
    """Seeing all positions gives other logits, from the first row on that may not see all."""
    checkpoint = tiny(name)
    decoder = checkpoint.decoder(device)
    spec = decoder.spec
    top_k = spec.layers[0].attention.indexer.top_k  # type: ignore[union-attr]
    dense = [
        replace(layer, attention=replace(layer.attention, indexer=None)) for layer in spec.layers
    ]
    blind = Decoder(replace(spec, layers=tuple(dense)), decoder.weights, decoder.ops)
    found, without = logits(decoder, prompt()), logits(blind, prompt())
    np.testing.assert_allclose(without[:top_k], found[:top_k], rtol=0, atol=2e-5)
    assert (np.abs(without - found)[top_k:].max(axis=1) > 1e-3).mean() > 0.9
    assert "select_entries" in {op for op, _ in decoder.ops.usage()}


# Beside the same rows in other company.
ATOL = {"torch:cpu": 2e-5}


@pytest.mark.parametrize("length", [1, 16, 23, 24, 25, 41, 59])
def test_cut_back_and_resumed_it_is_the_undisturbed_text(
    tiny: Tiny, device: str, length: int
) -> None:
    decoder = tiny("deepseek_v32").decoder(device)
    undisturbed, resumed = cut_and_resumed(decoder, length)
    assert resumed == undisturbed


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_company(tiny: Tiny, name: str, device: str) -> None:
    """On cpu bit for bit, also where some rows of a step select and others do not; on numpy up to
    the rounding of float64 sums, and on torch of float32 sums."""
    decoder = tiny(name).decoder(device)
    alone = logits(decoder, prompt(60))
    for chunk in (1, 7, 16):
        chunked = logits(decoder, prompt(60), chunk)
        if device == "cpu":
            np.testing.assert_array_equal(chunked, alone)
        else:
            np.testing.assert_allclose(chunked, alone, rtol=0, atol=ATOL.get(device, 2e-6))
    engine = new_engine(decoder, 64, sequences=3)
    lengths = (10, 23, 40)
    sequences = [
        engine.add(prompt(length, length), SamplingParameters(), StopConditions(max_tokens=25))
        for length in lengths
    ]
    run_to_end(engine)
    for length, sequence in zip(lengths, sequences, strict=True):
        expected = run(new_engine(decoder, 64), prompt(length, length), 25)
        assert list(sequence.output_ids) == expected


def test_rows_split_by_position_are_as_rows_apart(device: str) -> None:
    """The block on each case, and on each of its rows by itself."""
    backend = open_device(device, exact=True)
    assert isinstance(backend, Backend)
    for case in cases_of("sparse_latent_attention_block"):
        x, block, entries, keys, rows, table = (
            to_device(backend, argument) for argument in case.arguments()
        )
        assert isinstance(block, SparseLatentAttentionBlock)
        together = backend.call(
            "sparse_latent_attention_block", x, block, entries, keys, rows, table
        )
        for row in range(len(rows.positions)):
            chosen = np.arange(len(rows.positions)) == row
            given = (x[chosen], block, entries, keys, rows.part(chosen), table[chosen])
            found = backend.call("sparse_latent_attention_block", *given)
            # Later rows are in the streams already, and none sees them.
            size = float(np.abs(backend.download(together)).max())
            atol = ATOL.get(device, 1e-7) * max(10.0, size / 3)
            np.testing.assert_allclose(found[0], together[row], rtol=0, atol=atol)


# Configs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["index_n_heads", "index_head_dim", "index_topk"])
@pytest.mark.parametrize("value", [None, 0, -8, 1.5, "64", 1 << 40])
def test_a_size_of_the_indexer_that_makes_no_sense(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}' in the config is"):
        make_spec(tiny_config_files("deepseek_v32").changed(**{key: value}))


def test_index_heads_narrower_than_what_turns() -> None:
    with pytest.raises(CheckpointError, match="less than the values that turn"):
        make_spec(tiny_config_files("deepseek_v32").changed(index_head_dim=6))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("q_lora_rank", None),
        ("layer_types", ["indexed_attention", "full_attention"]),
        ("mlp_layer_types", ["dense", "spread"]),
    ],
)
def test_a_variant_that_is_not_known(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        make_spec(tiny_config_files("deepseek_v32").changed(**{key: value}))


def test_a_checkpoint_without_an_indexer_s_tensors() -> None:
    files = tiny_config_files("deepseek_v32")
    kept = {name: header for name, header in files.tensors.items() if "k_norm.bias" not in name}
    with pytest.raises(CheckpointError, match=r"indexer\.k_norm\.bias"):
        make_spec(replace(files, tensors=kept))


def test_the_indexer_s_weights_are_kept_exact() -> None:
    spec = make_spec(tiny_config_files("deepseek_v32"))
    for layer in spec.layers:
        assert isinstance(layer.attention, LatentAttentionSpec)
        assert layer.attention.indexer is not None
        assert layer.attention.indexer.weights.weight.kept == "f32"
