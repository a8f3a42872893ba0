"""Configs of well-known models, as they were published: the spec has their sizes, and needs exactly
the tensors that transformers' model of that config has, in those shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from firstlight.model.families.registry import make_spec
from firstlight.model.rope_spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
)
from firstlight.model.spec import ModelSpec
from tests.support.config_files import ConfigFiles, Header


@dataclass(frozen=True)
class Published:
    """A config and what is known of its model.

    Attributes:
        windows: how many layers have which window.
        head_size, turned: values of a head, and how many of them rotate.
    """

    name: str
    config: dict[str, Any]
    context_length: int
    head_size: int
    turned: int
    theta: float
    tied: bool
    windows: dict[int | None, int]


def _sizes(
    vocabulary: int, hidden: int, width: int, layers: int, heads: int, key_value_heads: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


_FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}

PUBLISHED = (
    Published(
        "Llama 2 7B",
        {
            "model_type": "llama",
            **_sizes(32000, 4096, 11008, 32, 32, 32),
            "max_position_embeddings": 4096,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
        },
        *(4096, 128, 128, 10_000.0, False, {None: 32}),
    ),
    Published(
        "Llama 3.1 8B",
        {
            "model_type": "llama",
            **_sizes(128256, 4096, 14336, 32, 32, 8),
            "attention_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
        *(131_072, 128, 128, 500_000.0, False, {None: 32}),
    ),
    Published(
        "Mistral 7B v0.1",
        {
            "model_type": "mistral",
            **_sizes(32000, 4096, 14336, 32, 32, 8),
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
        *(32_768, 128, 128, 10_000.0, False, {4096: 32}),
    ),
    Published(
        "Mistral Nemo",
        {
            "model_type": "mistral",
            **_sizes(131072, 5120, 14336, 40, 32, 8),
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        *(131_072, 128, 128, 1e6, False, {None: 40}),
    ),
    Published(
        "R1-Distill-Qwen 1.5B",
        {
            "model_type": "qwen2",
            **_sizes(151936, 1536, 8960, 28, 12, 2),
            "max_position_embeddings": 131072,
            "max_window_layers": 21,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "use_mrope": False,
            "use_sliding_window": False,
        },
        *(131_072, 128, 128, 10_000.0, False, {None: 28}),
    ),
    Published(
        "Qwen2.5 7B, with YaRN as its card says to add it",
        {
            "model_type": "qwen2",
            **_sizes(152064, 3584, 18944, 28, 28, 4),
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "type": "yarn",
            },
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        },
        *(131_072, 128, 128, 1e6, False, {None: 28}),
    ),
    Published(
        "Qwen3 0.6B",
        {
            "model_type": "qwen3",
            **_sizes(151936, 1024, 3072, 28, 16, 8),
            "attention_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        *(40_960, 128, 128, 1e6, True, {None: 28}),
    ),
    Published(
        "Gemma 2 2B",
        {
            "model_type": "gemma2",
            **_sizes(256000, 2304, 9216, 26, 8, 4),
            "attention_bias": False,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        *(8192, 256, 256, 10_000.0, True, {4096: 13, None: 13}),
    ),
    Published(
        "Gemma 3 4B, whose config leaves out most",
        {
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        },
        *(131_072, 256, 256, 1e6, True, {1024: 29, None: 5}),
    ),
    Published(
        "Phi-3 mini 4k",
        {
            "model_type": "phi3",
            **_sizes(32064, 3072, 8192, 32, 32, 32),
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
        },
        *(4096, 96, 96, 10_000.0, False, {2047: 32}),
    ),
    Published(
        "Phi-4 mini",
        {
            "model_type": "phi3",
            **_sizes(200064, 3072, 8192, 32, 24, 8),
            "attention_bias": False,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"type": "longrope", **_FACTORS},
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
        },
        *(131_072, 128, 96, 10_000.0, True, {262_144: 32}),
    ),
    Published(
        "OLMo 2 7B",
        {
            "model_type": "olmo2",
            **_sizes(100352, 4096, 11008, 32, 32, 32),
            "attention_bias": False,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
        },
        *(4096, 128, 128, 500_000.0, False, {None: 32}),
    ),
    Published(
        "SmolLM3 3B",
        {
            "model_type": "smollm3",
            **_sizes(128256, 2048, 11008, 36, 16, 4),
            "attention_bias": False,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        *(65_536, 128, 128, 5e6, True, {None: 36}),
    ),
    Published(
        "Granite 3.1 2B",
        {
            "model_type": "granite",
            **_sizes(49155, 2048, 8192, 40, 32, 8),
            "attention_bias": False,
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "tie_word_embeddings": True,
        },
        *(131_072, 64, 64, 5e6, True, {None: 40}),
    ),
)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_sizes_and_tensors(published: Published) -> None:
    tensors = _tensors(published.config)
    spec = make_spec(ConfigFiles(published.config, tensors))
    assert {source.name for source in spec.sources()} == set(tensors)
    assert spec.context_length == published.context_length
    assert spec.tied == published.tied
    assert spec.layers[0].attention.head_size == published.head_size
    windows = [layer.attention.window for layer in spec.layers]
    assert {window: windows.count(window) for window in windows} == published.windows
    full = spec.ropes()[-1]
    assert (full.size, full.theta) == (published.turned, published.theta)


def test_scalings() -> None:
    llama = _spec("Llama 3.1 8B").ropes()[0].scaling
    assert llama == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    qwen = _spec("Qwen2.5 7B, with YaRN as its card says to add it").ropes()[0].scaling
    assert isinstance(qwen, YarnScaling)
    assert (qwen.factor, qwen.original_length) == (4.0, 32_768)
    sliding, full = _spec("Gemma 3 4B, whose config leaves out most").ropes()
    assert (sliding.theta, sliding.scaling) == (10_000.0, None)
    assert (full.theta, full.scaling) == (1e6, LinearScaling(8.0))
    phi = _spec("Phi-4 mini").ropes()[0].scaling
    assert isinstance(phi, LongRopeScaling)
    # sqrt(1 + ln 32 / ln 4096), which files of this model state as 1.190238
    assert phi.magnitude == pytest.approx(1.190238, abs=1e-6)


def test_layers_without_rotation() -> None:
    """SmolLM3's are every fourth."""
    turned = [layer.attention.rope is not None for layer in _spec("SmolLM3 3B").layers]
    assert turned == [True, True, True, False] * 9


def test_multipliers() -> None:
    spec = _spec("Granite 3.1 2B")
    assert (spec.embedding_scale, spec.logit_scale) == (12.0, 1 / 8)
    assert spec.layers[0].attention.scale == 0.015625
    assert spec.layers[0].attention_residual.scale == 0.22
    gemma = _spec("Gemma 2 2B")
    assert gemma.embedding_scale == 48.0
    assert gemma.layers[0].attention.scale == 1 / 16
    assert (gemma.layers[0].attention.soft_cap, gemma.logit_soft_cap) == (50.0, 30.0)


def _spec(name: str) -> ModelSpec:
    published = next(found for found in PUBLISHED if found.name == name)
    return make_spec(ConfigFiles(published.config, _tensors(published.config)))


def _tensors(config: dict[str, Any]) -> dict[str, Header]:
    """Names and shapes of transformers' model, which holds no memory."""
    given = {"pad_token_id": None, **(config.get("text_config") or config)}
    model_config = transformers.AutoConfig.for_model(**given)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(model_config)
    inside = "language_model." if "text_config" in config else ""
    return {
        inside + name: Header(tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not model_config.tie_word_embeddings
    }
