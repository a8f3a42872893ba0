"""Latent attention beyond its logits: what it keeps, both of its forms, cutting back, company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.backends import open_device
from firstlight.backends.base import Backend
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import state_bytes_per_token
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.errors import CheckpointError
from firstlight.model.attention_spec import LatentAttentionSpec
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.spec import ModelSpec
from firstlight.model.weights import load_weights
from firstlight.ops import LatentAttentionBlock
from firstlight.verify.cases import StreamArgument, cases_of
from firstlight.verify.conformance import to_device
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.config_files import ConfigFiles, tiny_config_files
from tests.support.decode import PAGE_TOKENS, cut_and_resumed, logits, new_engine, run
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

Tiny = Callable[..., TinyCheckpoint]

# DeepSeek-V3's and DeepSeek-V2-Lite's config.json as published, their experts left out.
_YARN = {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "factor": 40}
V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "rope_scaling": {
        **_YARN,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
V2_LITE = {
    **V3,
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": {
        **_YARN,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    },
}


def _attention(spec: ModelSpec) -> LatentAttentionSpec:
    attention = spec.layers[0].attention
    assert isinstance(attention, LatentAttentionSpec)
    return attention


# State -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "layers"), [(V3, 61), (V2_LITE, 27)], ids=["V3", "V2-Lite"])
def test_state_is_576_values_a_token_and_layer(config: dict[str, Any], layers: int) -> None:
    """V3 in bfloat16: 70,272 bytes a token, where keys and values of 128 heads would be 4 MB."""
    spec = spec_of_config(ConfigFiles(config))
    assert _attention(spec).entry_size == 576
    assert state_bytes_per_token(spec, "bfloat16") == layers * 576 * 2
    assert state_bytes_per_token(spec, "float32") == layers * 576 * 4


def test_v3_as_published_has_671_billion_parameters_of_which_a_token_uses_37() -> None:
    """The counts that arXiv:2412.19437 states, from the spec's tensors: every one is there."""
    published = {
        **V3,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    }
    spec = spec_of_config(ConfigFiles(published))
    assert round(sum(prod(source.shape) for source in spec.sources()) / 1e9) == 671
    assert 37e9 <= spec.active_parameters() < 38e9


def test_pages_hold_the_latent_and_nothing_else(tiny: Tiny) -> None:
    decoder = tiny("deepseek_v3").decoder("numpy")
    state = decoder.new_state((5,), PAGE_TOKENS, "bfloat16")
    assert [[stream.shape for stream in layer] for layer in state] == [
        [(5, PAGE_TOKENS, 24 + 8)] for _ in decoder.spec.layers
    ]


# Numbers that follow from the config ---------------------------------------------------------


def test_yarn_s_share_of_the_scores() -> None:
    """m = 0.1 * mscale_all_dim * ln(40) + 1; the scores have its square, the angles m / m = 1."""
    for config, weight in ((V3, 1.0), (V2_LITE, 0.707)):
        attention = _attention(spec_of_config(ConfigFiles(config)))
        magnitude = 0.1 * weight * np.log(40.0) + 1
        assert attention.scale == pytest.approx(192**-0.5 * magnitude**2, rel=1e-12)
        assert attention.rope.scaling is not None
        assert getattr(attention.rope.scaling, "magnitude") == 1.0  # noqa: B009
        assert attention.rope.interleaved


def test_mscale_alone_is_in_the_angles_as_published() -> None:
    """DeepSeek: m(mscale) / m(0) = m(mscale); transformers would take m(1)."""
    scaling = {**V3["rope_scaling"], "mscale": 0.5, "mscale_all_dim": 0}
    attention = _attention(spec_of_config(ConfigFiles({**V3, "rope_scaling": scaling})))
    assert attention.scale == pytest.approx(192**-0.5)
    found = getattr(attention.rope.scaling, "magnitude")  # noqa: B009
    assert found == pytest.approx(0.1 * 0.5 * np.log(40.0) + 1)


@pytest.mark.parametrize("mscale_all_dim", [-30.0, 1e300])
def test_a_weight_that_leaves_no_scale(mscale_all_dim: float) -> None:
    scaling = {**V3["rope_scaling"], "mscale_all_dim": mscale_all_dim}
    with pytest.raises(CheckpointError, match=r"mscale_all_dim|attention_factor"):
        spec_of_config(ConfigFiles({**V3, "rope_scaling": scaling}))


@pytest.mark.parametrize(
    "key", ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
)
@pytest.mark.parametrize("value", [None, 0, -8, 1.5, "64", 1 << 40])
def test_a_size_of_the_latents_that_makes_no_sense(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}' in the config is"):
        make_spec(tiny_config_files("deepseek_v3").changed(**{key: value}))


@pytest.mark.parametrize("size", [1 << 31, (1 << 16) + 2])
def test_a_rotary_key_longer_than_any_head(size: int) -> None:
    """Its angles would fill memory before anything else is checked."""
    with pytest.raises(CheckpointError, match="'qk_rope_head_dim' in the config is"):
        make_spec(tiny_config_files("deepseek_v3").changed(qk_rope_head_dim=size))


def test_an_odd_rotary_key() -> None:
    with pytest.raises(CheckpointError, match="not whole pairs"):
        make_spec(tiny_config_files("deepseek_v3").changed(qk_rope_head_dim=7))


# Multi-token prediction ------------------------------------------------------------------------


def test_a_layer_of_multi_token_prediction_is_left_out_unless_asked_for(tiny: Tiny) -> None:
    files = tiny_config_files("deepseek_v3")
    extra = {
        name.replace("model.layers.1.", "model.layers.2."): header
        for name, header in files.tensors.items()
        if name.startswith("model.layers.1.")
    }
    more = replace(files, tensors={**files.tensors, **extra})
    found = make_spec(more.changed(num_nextn_predict_layers=1))
    assert found.notes == (
        "model.layers.2, a layer of multi-token prediction, is used with --speculate mtp only",
    )
    assert make_spec(files).notes == ()
    assert replace(found, notes=()) == make_spec(files)


# Both forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "deepseek_v3-halves"])
def test_the_expanded_form_gives_the_same_logits(
    tiny: Tiny, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny(name)
    absorbed = logits(checkpoint.decoder(device), prompt())
    from firstlight.model import attention

    made = attention.attention_block

    def expanded(*arguments: Any) -> Any:
        block = made(*arguments)
        assert isinstance(block, LatentAttentionBlock)
        return replace(block, expanded=True)

    monkeypatch.setattr(attention, "attention_block", expanded)
    opened = open_checkpoint(checkpoint.folder)
    spec, ops = make_spec(opened), open_device(device, exact=True)
    decoder = Decoder(spec, load_weights(spec, opened, ops), ops)
    found = logits(decoder, prompt(), 19)
    assert "expanded_latent_attention" in {op for op, _ in ops.usage()}
    np.testing.assert_allclose(found, absorbed, rtol=0, atol=5e-5)
    assert np.abs(found - checkpoint.logits).max() < 1e-4


def test_both_forms_agree_in_every_case(device: str) -> None:
    backend = open_device(device, exact=True)
    assert isinstance(backend, Backend)
    compared = 0
    for case in cases_of("latent_attention_block"):
        results = []
        for form in (False, True):
            x, block, *rest = (to_device(backend, argument) for argument in case.arguments())
            block = replace(block, expanded=form)
            found = backend.call("latent_attention_block", x, block, *rest)
            results.append(backend.download(found))
        scale = np.abs(results[0]).max(initial=0.0)
        np.testing.assert_allclose(*results, rtol=0, atol=2e-5 * scale + 1e-6, err_msg=case.name)
        compared += results[0].size > 0
        assert any(isinstance(argument, StreamArgument) for argument in case.arguments())
    assert compared > 8


# Sequences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 55, 59])
def test_cut_back_and_resumed_it_is_the_undisturbed_text(
    tiny: Tiny, device: str, length: int
) -> None:
    decoder = tiny("deepseek_v3").decoder(device)
    undisturbed, resumed = cut_and_resumed(decoder, length)
    assert resumed == undisturbed


def test_a_row_does_not_depend_on_its_company(tiny: Tiny, device: str) -> None:
    """On cpu bit for bit; on numpy up to the rounding of float64 sums, on torch of float32 ones."""
    decoder = tiny("deepseek_v3").decoder(device)
    alone = logits(decoder, prompt(40))
    chunked = logits(decoder, prompt(40), 7)
    engine = new_engine(decoder, 64, sequences=3)
    sequences = [
        engine.add(prompt(40, seed), SamplingParameters(), StopConditions(max_tokens=20))
        for seed in range(3)
    ]
    run_to_end(engine)
    for seed, sequence in enumerate(sequences):
        assert list(sequence.output_ids) == run(new_engine(decoder, 64), prompt(40, seed), 20)
    if device == "cpu":
        np.testing.assert_array_equal(chunked, alone)
    else:
        atol = 2e-6 if device == "numpy" else 2e-5
        np.testing.assert_allclose(chunked, alone, rtol=0, atol=atol)


def test_state_in_bfloat16_is_close(tiny: Tiny, device: str, tmp_path: Path) -> None:
    decoder = tiny("deepseek_v2").decoder(device)
    exact = logits(decoder, prompt())
    engine = Engine(decoder, 256, 1, 50, "bfloat16", page_tokens=PAGE_TOKENS)
    error = np.abs(engine.logits(prompt()) - exact)
    assert 1e-4 < error.max() < 0.05 * np.abs(exact).max()
