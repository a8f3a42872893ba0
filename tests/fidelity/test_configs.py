"""The same model under older and newer configs, and inside a larger model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.model.families.registry import make_spec
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import load_decoder, logits
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_checkpoints import (
    ABSENT,
    randomise,
    rewrite_config,
    write_checkpoint,
)
from tests.support.tiny_models import (
    TINY_MODELS,
    prompt,
    tiny_model,
)

Tiny = Callable[..., TinyCheckpoint]
WITH_OLDER_CONFIG = [model.name for model in TINY_MODELS if model.older is not None]


@pytest.mark.parametrize("name", WITH_OLDER_CONFIG)
def test_version_4_configs_mean_the_same_model(tiny: Tiny, tmp_path: Path, name: str) -> None:
    newer = tiny(name)
    folder = tmp_path / "older"
    shutil.copytree(newer.folder, folder)
    changes = tiny_model(name).older
    assert changes is not None
    rewrite_config(folder, {"dtype": ABSENT, "torch_dtype": "float32", **changes})
    # That the older config is rightly written is transformers' word, not ours.
    theirs = reference_logits(load_reference(folder), prompt())
    assert np.abs(theirs - newer.logits).max() < 1e-5
    assert make_spec(open_checkpoint(folder)) == make_spec(open_checkpoint(newer.folder))


# What configs of each family may leave out, so that the family's own default must count.
_ALL = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
_GEMMA = (
    *_ALL,
    "head_dim",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
    "hidden_activation",
    "attention_bias",
    "rope_parameters",
)
_LEFT_OUT = {
    "llama": (*_ALL, "hidden_act", "attention_bias", "mlp_bias", "rope_parameters"),
    "mistral": (*_ALL, "sliding_window", "hidden_act"),
    "qwen2": (*_ALL, "use_sliding_window", "max_window_layers", "layer_types"),
    "qwen3": (*_ALL, "head_dim", "attention_bias", "use_sliding_window", "layer_types"),
    "gemma2": (*_GEMMA, "attn_logit_softcapping"),
    "gemma3": (*_GEMMA, "num_attention_heads"),
    "phi3": (*_ALL, "sliding_window", "rope_parameters"),
    "olmo2": (*_ALL, "attention_bias", "rope_parameters"),
    "smollm3": (*_ALL, "rope_parameters", "no_rope_layers", "layer_types", "mlp_bias"),
    "granite": (
        *_ALL,
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "embedding_multiplier",
        "rope_parameters",
    ),
}
# Where a default decides a shape, the model must have it: the number of heads and the layers that
# a pattern needs.
_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma2": 4, "gemma3": 8, "smollm3": 4}
_LAYERS = {"gemma3": 6, "smollm3": 4}


@pytest.mark.parametrize("family", _LEFT_OUT)
def test_values_left_out_take_the_family_s_defaults(tmp_path: Path, family: str) -> None:
    """transformers and firstlight read a config without these keys alike."""
    model_class = getattr(transformers, tiny_model(family).model_class)
    config = model_class.config_class(
        vocab_size=157,
        hidden_size=64,
        intermediate_size=68,
        num_hidden_layers=_LAYERS.get(family, 2),
        num_attention_heads=_HEADS.get(family, 2),
        pad_token_id=None,
    )
    model = model_class(config)
    randomise(model, seed=3)
    folder = write_checkpoint(model, tmp_path / "model", shard_size="1GB")
    rewrite_config(folder, dict.fromkeys(_LEFT_OUT[family], ABSENT))
    tokens = prompt(40)
    expected = reference_logits(load_reference(folder), tokens)
    found = logits(load_decoder(folder, "numpy"), tokens)
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("published", ["older", "newer"])
def test_gemma_3_inside_a_multimodal_checkpoint(
    tmp_path: Path, published: str, device: str
) -> None:
    """Its text model is used and its vision tensors are left alone.

    Published multimodal checkpoints name the text tensors language_model.model.*; those that
    transformers has written since version 4.52 from a loaded model, model.language_model.*.
    """
    text = tiny_model("gemma3").config()
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=156,
        boi_token_index=155,
        eoi_token_index=154,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    randomise(model, seed=7)
    model.tie_weights()
    folder = tmp_path / "multimodal"
    _save(model.eval(), folder, published)
    names = open_checkpoint(folder).tensors
    inside = "language_model.model" if published == "older" else "model.language_model"
    assert f"{inside}.embed_tokens.weight" in names
    assert any("vision_tower" in name for name in names)

    alone = transformers.Gemma3ForCausalLM(text)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    expected = reference_logits(alone.eval(), prompt())
    found = logits(load_decoder(folder, device), prompt())
    assert np.abs(found - expected).max() < 1e-4


def _save(model: transformers.PreTrainedModel, folder: Path, published: str) -> None:
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if published == "older":
            name = name.removeprefix("model.")
            if name.startswith("language_model."):
                name = name.replace("language_model.", "language_model.model.", 1)
        tensors[name] = tensor.contiguous().clone()
    save_file(tensors, folder / "model.safetensors")
