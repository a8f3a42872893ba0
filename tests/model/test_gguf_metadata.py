"""What GGUF metadata mean where they say it otherwise than configs do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firstlight.model.families.registry import spec_of_config
from firstlight.model.rope_spec import (
    FactorScaling,
    LinearScaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from firstlight.model.spec import ModelSpec
from tests.support.config_files import Header, gguf_config_files


def _spec(architecture: str, tensors: dict[str, Header] | None = None, **keys: Any) -> ModelSpec:
    files = gguf_config_files(architecture, **keys)
    return spec_of_config(replace(files, tensors={**files.tensors, **(tensors or {})}))


def _rope(spec: ModelSpec) -> RopeSpec:
    (rope,) = spec.ropes()
    return rope


_SCALINGS: list[tuple[dict[str, Any], RopeScaling | None]] = [
    ({}, None),
    ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, None),
    ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, LinearScaling(4.0)),
    # The type is linear where only a factor stands, and older files call that scale_linear.
    ({"rope__scaling__factor": 4.0}, LinearScaling(4.0)),
    ({"rope__scale_linear": 2.0}, LinearScaling(2.0)),
    ({"rope__scaling__factor": 0.0}, None),
    (
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 128,
        },
        YarnScaling(4.0, 128, 32.0, 1.0, 0.1 * math.log(4) + 1),
    ),
    (
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__yarn_attn_factor": 1.5,
            "rope__scaling__yarn_beta_fast": 16.0,
            "rope__scaling__yarn_beta_slow": 2.0,
        },
        YarnScaling(4.0, 512, 16.0, 2.0, 1.5),
    ),
]


@pytest.mark.parametrize(("keys", "scaling"), _SCALINGS)
def test_rope_scaling(keys: dict[str, Any], scaling: RopeScaling | None) -> None:
    assert _rope(_spec("qwen2", **keys)).scaling == scaling


def test_rope_factors_in_tensors() -> None:
    four = Header((4,))
    spec = _spec("llama", {"rope_freqs.weight": four})
    assert _rope(spec).scaling == FactorScaling((1.0,) * 4)
    tensors = {"rope_factors_long.weight": four, "rope_factors_short.weight": four}
    keys = {"rope__scaling__original_context_length": 64, "rope__scaling__attn_factor": 1.25}
    spec = _spec("phi3", tensors, **keys)
    assert _rope(spec).scaling == LongRopeScaling((1.0,) * 4, (1.0,) * 4, 64, 1.25)


def test_context_lengths() -> None:
    """Linear and YaRN scaling extend what the file says the model was made for."""
    assert _spec("llama").context_length == 512
    linear = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    assert _spec("llama", **linear).context_length == 2048
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__original_context_length": 256}
    assert _spec("qwen2", **yarn, rope__scaling__factor=8.0).context_length == 2048
    assert _spec("qwen2", **yarn, rope__scaling__factor=1.5).context_length == 512


def test_pairs_are_neighbours_where_rows_were_reordered() -> None:
    neighbours = {
        name: _spec(name).ropes()[0].interleaved
        for name in ("llama", "granite", "smollm3", "qwen2", "qwen3", "phi3", "olmo2", "gemma2")
    }
    assert [name for name, found in neighbours.items() if found] == ["llama", "granite", "smollm3"]


def test_the_base_is_ten_thousand_where_the_file_does_not_say() -> None:
    for architecture in ("llama", "smollm3", "qwen3"):
        assert _spec(architecture).ropes()[0].theta == 10_000.0


def test_a_part_of_a_head_turns() -> None:
    assert _rope(_spec("phi3", rope__dimension_count=6)).size == 6
    assert _rope(_spec("llama", attention__key_length=24, rope__dimension_count=16)).size == 16


def test_head_counts() -> None:
    attention = _spec("llama", attention__head_count_kv=None).layers[0].attention
    assert (attention.heads, attention.key_value_heads, attention.head_size) == (6, 6, 8)
    attention = _spec("llama", attention__key_length=16, attention__value_length=16)
    assert attention.layers[0].attention.head_size == 16


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [None] * 7),
        ({"attention__sliding_window": 9}, [9, 9, 9, 9, 9, None, 9]),
        ({"attention__sliding_window": 9, "attention__sliding_window_pattern": 3}, [9, 9, None]),
        (
            {
                "attention__sliding_window": 9,
                "attention__sliding_window_pattern": np.array([False, True, True] + [False] * 4),
            },
            [None, 9, 9, None, None, None, None],
        ),
        (
            {"attention__sliding_window": 9, "attention__sliding_window_pattern": np.ones(7, bool)},
            [9] * 7,
        ),
        (
            {
                "attention__sliding_window": 9,
                "attention__sliding_window_pattern": np.zeros(7, bool),
            },
            [None] * 7,
        ),
        ({"attention__sliding_window": 0}, [None] * 7),
    ],
)
def test_windows_of_gemma_3(keys: dict[str, Any], expected: list[int | None]) -> None:
    layers = _spec("gemma3", block_count=7, **keys).layers
    windows = [layer.attention.window for layer in layers]
    assert windows[: len(expected)] == expected


def test_each_kind_of_gemma_3_s_layers_has_its_own_base() -> None:
    keys = {
        "block_count": 7,
        "attention__sliding_window": 9,
        "rope__freq_base": 1e6,
        "rope__scaling__type": "linear",
        "rope__scaling__factor": 8.0,
    }
    sliding, full = _spec("gemma3", **keys).ropes()
    assert (sliding.theta, sliding.scaling) == (10_000.0, None)
    assert (full.theta, full.scaling) == (1e6, LinearScaling(8.0))
    sliding, _ = _spec("gemma3", **keys, rope__freq_base_swa=5000.0).ropes()
    assert sliding.theta == 5000.0


def test_windows_of_phi_3() -> None:
    """Zero is how the converter writes none."""
    assert _spec("phi3", attention__sliding_window=0).layers[0].attention.window is None
    assert _spec("phi3", attention__sliding_window=7).layers[0].attention.window == 7


@pytest.mark.parametrize(("architecture", "layers_of_27b"), [("gemma2", 46), ("gemma3", 62)])
def test_gemma_s_27b_is_told_by_its_layers(architecture: str, layers_of_27b: int) -> None:
    """Its scores are scaled by hidden size / heads; those of all others by the head size."""
    for layers, scalar in ((layers_of_27b, 48 // 6), (26, 32)):
        spec = _spec(architecture, block_count=layers, attention__key_length=32)
        assert spec.layers[0].attention.scale == pytest.approx(scalar**-0.5, rel=1e-12)


def test_granite_s_scales() -> None:
    plain = _spec("granite")
    assert plain.layers[0].attention.scale == 8**-0.5
    assert (plain.embedding_scale, plain.logit_scale) == (1.0, 1.0)
    scales = {"attention__scale": 0.5, "embedding_scale": 3.0, "logit_scale": 4.0}
    spec = _spec("granite", **scales, residual_scale=0.2)
    assert (spec.embedding_scale, spec.logit_scale) == (3.0, 0.25)
    assert spec.layers[0].attention.scale == 0.5
    assert spec.layers[1].feed_forward_residual.scale == 0.2


def test_biases_and_the_head_are_there_where_their_tensors_are() -> None:
    spec = _spec("llama")
    assert spec.tied
    assert spec.layers[0].attention.query.bias is None
    names = [f"blk.{layer}.attn_{part}.bias" for layer in (0, 1) for part in ("q", "output")]
    tensors = {name: Header((48,)) for name in names} | {"output.weight": Header((157, 48))}
    spec = _spec("llama", tensors)
    assert not spec.tied
    for layer in spec.layers:
        assert layer.attention.query.bias is not None
        assert layer.attention.output.bias is not None
        assert layer.attention.key.bias is None
