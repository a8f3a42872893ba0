"""DeepSeek-V4 beyond its logits: what it keeps, what its config says, and as it is published."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import entries_bytes, plan_memory, state_bytes_per_token
from firstlight.errors import CheckpointError, FirstlightError, FormatError, UnsupportedModelError
from firstlight.model import attention
from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.spec import ModelSpec
from firstlight.model.stream import StreamSpec
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.config_files import ConfigFiles, tiny_config_files
from tests.support.decode import PAGE_TOKENS, load_decoder, logits, new_engine, run
from tests.support.deepseek_v4_files import write_published, write_values
from tests.support.reference import load_reference, reference_continuation, reference_logits
from tests.support.tiny_checkpoints import rewrite_config
from tests.support.tiny_models import prompt

Tiny = Callable[..., TinyCheckpoint]
TOLERANCE = 1e-4

# config.json of both models as published, but for their quantisation.
_COMMON = {
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "sliding_window": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "num_nextn_predict_layers": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "swiglu_limit": 10.0,
    "hidden_act": "silu",
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1048576,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 65536,
    },
    "tie_word_embeddings": False,
}
PRO = {
    **_COMMON,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "index_topk": 1024,
    "n_routed_experts": 384,
    "moe_intermediate_size": 3072,
    "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
}
FLASH = {
    **_COMMON,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "index_topk": 512,
    "n_routed_experts": 256,
    "moe_intermediate_size": 2048,
    "routed_scaling_factor": 1.5,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}


def _compressed(spec: ModelSpec, layer: int) -> CompressedAttentionSpec:
    found = spec.layers[layer].attention
    assert isinstance(found, CompressedAttentionSpec)
    return found


# State -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gibibytes"), [(PRO, 9.62), (FLASH, 6.72)], ids=["Pro", "Flash"]
)
def test_state_of_a_million_tokens(config: dict[str, Any], gibibytes: float) -> None:
    """In bfloat16, everything that the next token needs: entries, index keys, windows, open runs.

    The figures are those that vLLM's authors and others have published for the same caches.
    """
    spec = spec_of_config(ConfigFiles(config))
    assert round(entries_bytes(spec, 1 << 20, "bfloat16") / 2**30, 2) == gibibytes


def test_what_the_state_of_pro_is_made_of() -> None:
    spec = spec_of_config(ConfigFiles(PRO))
    sparse, heavy, layers = 30, 31, 61
    # A run of 4 leaves 512 + 128 values in each of 30 layers, one of 128 leaves 512 in each of 31.
    lasting = sparse * (512 + 128) * 2 // 4 + heavy * 512 * 2 // 128
    assert lasting == 9848
    windows = layers * 127 * 512 * 2
    before = sparse * 4 * 2 * (512 + 128) * 2  # values and gates of the run before, 4 tokens
    assert entries_bytes(spec, 1 << 20, "bfloat16") == (lasting << 20) + windows + before
    # Where runs are open, what they are made of comes to that: at most 3 and 127 tokens.
    open_runs = (sparse * 3 * (512 + 128) * 2 + heavy * 127 * 512) * 2 * 2
    almost = (1 << 20) - 1
    lost = lasting * 128 - sum(
        stream.entry_bytes("bfloat16") * (almost // stream.stride - (almost - 127) // stream.stride)
        for layer in spec.layers
        for stream in attention.streams(layer.attention)
        if stream.window is None
    )
    assert entries_bytes(spec, almost, "bfloat16") == (
        (lasting << 20) + windows + before + open_runs - lost
    )
    assert lost == sparse * (512 + 128) * 2 + heavy * 512 * 2
    # The first tokens add to all of them.
    everything = lasting + layers * 1024 + heavy * 2048 + sparse * 2 * 2 * 2 * (512 + 128)
    assert state_bytes_per_token(spec, "bfloat16") == everything


def test_streams_of_each_kind_of_layer() -> None:
    spec = spec_of_config(ConfigFiles(PRO | {"compress_ratios": [0, 128, 4, *[0] * 59]}))
    sliding, heavy, sparse = (attention.streams(_compressed(spec, layer)) for layer in range(3))
    key = StreamSpec("key", (1, 512), window=128)
    assert sliding == (key,)
    assert heavy == (
        key,
        StreamSpec("compressed", (512,), stride=128),
        StreamSpec("compressed, open run", (2, 512), window=128, run=128),
    )
    assert sparse == (
        key,
        StreamSpec("compressed", (512,), stride=4),
        StreamSpec("compressed, open run", (2, 512), window=4, run=4),
        StreamSpec("compressed, run before", (2, 512), window=8, run=4),
        StreamSpec("index", (128,), stride=4),
        StreamSpec("index, open run", (2, 128), window=4, run=4),
        StreamSpec("index, run before", (2, 128), window=8, run=4),
    )


def test_pages_hold_whole_runs(tiny: Tiny) -> None:
    """A page is of as many tokens as every stride divides, and the plan knows that."""
    decoder = tiny("deepseek_v4").decoder("numpy")
    assert new_engine(decoder, 8).pages.page_tokens == PAGE_TOKENS
    engine = Engine(decoder, 256, page_tokens=6)
    assert engine.pages.page_tokens == 48
    for layer, streams in zip(engine._state, decoder.streams, strict=True):
        for pages, stream in zip(layer, streams, strict=True):
            assert pages.shape[1:] == (48 // stream.stride, *stream.entry_shape)
    checkpoint = open_checkpoint(tiny("deepseek_v4").folder)
    planned = plan_memory(decoder.spec, checkpoint, 256).state
    whole = Engine(decoder, 256)
    assert planned == sum(pages.nbytes for layer in whole._state for pages in layer)
    assert Engine(decoder, 256, state_memory=planned).sequence_tokens == 256


@pytest.mark.parametrize(
    ("config", "all_of_them", "of_a_token"),
    [(PRO, (1.55e12, 1.65e12), (48e9, 51e9)), (FLASH, (280e9, 288e9), (12.5e9, 14e9))],
    ids=["Pro", "Flash"],
)
def test_parameters_as_published(
    config: dict[str, Any], all_of_them: tuple[float, float], of_a_token: tuple[float, float]
) -> None:
    """1.6T, of which a token uses 49B, and 284B and 13B: every tensor is there."""
    spec = spec_of_config(ConfigFiles(config))
    assert spec.context_length == 1 << 20
    weights = [source for source in spec.sources() if not source.integers]
    assert all_of_them[0] < sum(prod(source.shape) for source in weights) < all_of_them[1]
    tables = sum(prod(source.shape) for source in spec.sources() if source.integers)
    assert of_a_token[0] < spec.active_parameters() - tables < of_a_token[1]


# Numbers that follow from the config -------------------------------------------------------------


def test_positions_are_scaled_where_a_layer_compresses_and_nowhere_else() -> None:
    spec = spec_of_config(ConfigFiles(FLASH))
    sliding, sparse = _compressed(spec, 0).rope, _compressed(spec, 2).rope
    assert (sliding.theta, sliding.scaling, sliding.size) == (10_000.0, None, 64)
    assert (sparse.theta, sparse.size, sparse.interleaved) == (160_000.0, 64, True)
    assert getattr(sparse.scaling, "factor") == 16  # noqa: B009
    assert getattr(sparse.scaling, "magnitude") == 1.0  # noqa: B009
    assert spec.residual_streams == 4


def test_the_first_layers_are_routed_by_a_table() -> None:
    spec = spec_of_config(ConfigFiles(PRO))
    found = [layer.feed_forward for layer in spec.layers]
    assert all(isinstance(each, ExpertsSpec) for each in found)
    tables = [isinstance(each, ExpertsSpec) and each.routing.hash_table for each in found]
    assert [bool(table) for table in tables] == [index < 3 for index in range(61)]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"compress_ratios": [2] * 43}, UnsupportedModelError, "has 2, not 0, 4 or 128"),
        ({"compress_ratios": [4] * 42}, CheckpointError, "has 42 entries, not 43"),
        ({"compress_ratios": [4.0] * 43}, CheckpointError, "not a list of whole numbers"),
        ({"compress_ratios": None}, CheckpointError, "'compress_ratios' in the config is missing"),
        ({"layer_types": ["full_attention"] * 43}, UnsupportedModelError, "'full_attention'"),
        ({"mlp_layer_types": ["dense"] * 43}, UnsupportedModelError, "'dense'"),
        ({"o_groups": 7}, CheckpointError, "does not divide 64 heads"),
        ({"qk_rope_head_dim": 63}, CheckpointError, "turns 63 of 512 values"),
        ({"index_head_dim": 32}, CheckpointError, "'index_head_dim'"),
        ({"index_topk": 0}, CheckpointError, "'index_topk'"),
        ({"sliding_window": 0}, CheckpointError, "'sliding_window'"),
        ({"hc_mult": 0}, CheckpointError, "'hc_mult'"),
        ({"hc_mult": 1 << 20}, CheckpointError, "'hc_mult'"),
        ({"hc_sinkhorn_iters": 0}, CheckpointError, "'hc_sinkhorn_iters'"),
        ({"hc_eps": float("nan")}, CheckpointError, "'hc_eps'"),
        ({"swiglu_limit": -1}, CheckpointError, "'swiglu_limit'"),
        ({"num_key_value_heads": 2}, UnsupportedModelError, "'num_key_value_heads'"),
        ({"attention_bias": True}, UnsupportedModelError, "'attention_bias'"),
        ({"norm_topk_prob": False}, UnsupportedModelError, "'norm_topk_prob'"),
        ({"topk_method": "greedy"}, UnsupportedModelError, "'topk_method'"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "'hidden_act'"),
        ({"scoring_func": "hardmax"}, UnsupportedModelError, "'hardmax'"),
    ],
)
def test_a_config_that_makes_no_sense(
    changes: dict[str, Any], error: type[FirstlightError], words: str
) -> None:
    with pytest.raises(error, match=words):
        spec_of_config(ConfigFiles({**FLASH, **changes}))


@pytest.mark.parametrize("rate", [0, 1, -4, 2.5, "4", 1 << 30])
def test_a_run_of_a_length_that_makes_no_sense(rate: Any) -> None:
    files = tiny_config_files("deepseek_v4").changed(
        compress_rates={"compressed_sparse_attention": rate}
    )
    with pytest.raises(CheckpointError, match="'compressed_sparse_attention'"):
        make_spec(files)


# What matters in the logits ----------------------------------------------------------------------


def test_the_indexer_decides_what_is_seen(tiny: Tiny, tmp_path: Path) -> None:
    """With all entries seen the logits are others, from where there are more than are chosen."""
    checkpoint = tiny("deepseek_v4")
    (tmp_path / "all").mkdir()
    for path in checkpoint.folder.iterdir():
        (tmp_path / "all" / path.name).write_bytes(path.read_bytes())
    rewrite_config(tmp_path / "all", {"index_topk": 1000})
    found = np.abs(
        logits(load_decoder(tmp_path / "all", "numpy"), prompt()) - checkpoint.logits
    ).max(axis=1)
    chosen, stride = 5, 4
    first = (chosen + 1) * stride - 1
    assert found[:first].max() < TOLERANCE
    assert (found[first:] > 0.01).mean() > 0.9


# As published ------------------------------------------------------------------------------------


def _logits(folder: Path, tokens: list[int], device: str, chunk: int) -> Any:
    return new_engine(load_decoder(folder, device), chunk, context_length=512).logits(tokens)


def test_the_published_layout_past_three_runs_of_128(tmp_path: Path, device: str) -> None:
    """Names and config as DeepSeek has them, which transformers reads too."""
    write_published(tmp_path)
    tokens = prompt(400)
    expected = reference_logits(load_reference(tmp_path), tokens)
    for chunk in (512, 57) if device == "cpu" else (130,):
        found = _logits(tmp_path, tokens, device, chunk)
        assert np.abs(found - expected).max() < TOLERANCE
    notes = make_spec(open_checkpoint(tmp_path)).notes
    assert notes == ("mtp.0, a layer of multi-token prediction, is used with --speculate mtp only",)


def test_the_layout_that_transformers_has_in_memory(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("deepseek_v4")
    tensors = {
        name: value.contiguous() for name, value in checkpoint.reference.state_dict().items()
    }
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((checkpoint.folder / "config.json").read_text())
    found = logits(load_decoder(tmp_path, "cpu"), prompt(), 37)
    assert np.abs(found - checkpoint.logits).max() < TOLERANCE


def test_projections_in_fp8_and_experts_in_four_bits(tmp_path: Path, device: str) -> None:
    values = write_published(tmp_path / "quantised", quantised=True)
    checkpoint = open_checkpoint(tmp_path / "quantised")
    spec = make_spec(checkpoint)
    formats = {}
    decoder = load_decoder(tmp_path / "quantised", device)
    for source in spec.sources():
        if len(source.shape) == 2 and not source.integers:
            weight = decoder.ops.unpack(decoder.weights[source])  # type: ignore[attr-defined]
            formats[source.name] = weight.format.name
            np.testing.assert_array_equal(weight.values(), values[source.name], source.name)
    assert formats["layers.1.ffn.experts.3.w2.weight"] == "mxfp4"
    assert formats["layers.1.attn.wo_a.weight"] == "f8_e4m3"
    assert formats["layers.1.ffn.shared_experts.w1.weight"] == "f8_e4m3"
    reference = load_reference(write_values(tmp_path / "values", values))
    tokens = prompt(290)
    found = new_engine(decoder, 100, context_length=512).logits(tokens)
    assert np.abs(found - reference_logits(reference, tokens)).max() < TOLERANCE
    engine = new_engine(decoder, 64, context_length=512)
    expected = reference_continuation(reference, tokens[:250], 20).token_ids
    assert run(engine, tokens[:250], 20) == expected


_CODES = "layers.2.ffn.experts.1.w1.weight"
_SCALES = "layers.2.ffn.experts.1.w1.scale"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({_SCALES: None}, CheckpointError, r"w1.scale' is missing"),
        ({_SCALES: torch.ones(32, 2)}, FormatError, "is stored as f32, and scales of mxfp4"),
        (
            {_SCALES: torch.full((32, 1), 127, dtype=torch.uint8)},
            CheckpointError,
            r"has shape \[32, 1\], but the config implies \[32, 2\]",
        ),
        (
            {_SCALES: torch.full((32, 2), 255, dtype=torch.uint8)},
            FormatError,
            "a scale of its blocks is NaN",
        ),
        (
            {"layers.2.ffn.gate.weight": torch.zeros(5, 64)},
            CheckpointError,
            r"gate.weight' has shape \[5, 64\], but the config implies \[6, 64\]",
        ),
        ({"layers.3.ffn.experts.5.w2.weight": None}, CheckpointError, "experts.5.w2.*is missing"),
        (
            {_CODES: torch.zeros(32, 64, dtype=torch.int8)},
            CheckpointError,
            r"has shape \[32, 64\], but the config implies \[32, 32\]",
        ),
        (
            {"layers.0.ffn.gate.tid2eid": torch.full((157, 2), 6, dtype=torch.int32)},
            CheckpointError,
            "names experts from 6 to 6, and there are 6",
        ),
        (
            {"layers.0.ffn.gate.tid2eid": torch.zeros(157, 2)},
            FirstlightError,
            "tid2eid.*is stored as 'f32'",
        ),
        ({"layers.1.attn.compressor.ape": torch.zeros(4, 16)}, CheckpointError, "ape' has shape"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, changes: dict[str, Any], error: type[FirstlightError], words: str
) -> None:
    write_published(tmp_path, quantised=True)
    path = tmp_path / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(error, match=words):
        load_decoder(tmp_path, "numpy")
