"""Checkpoints whose tensors have DeepSeek's own names are the models that they are elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.deepseek_config import in_published_words
from firstlight.errors import CheckpointError
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.matrices import kept_matrices
from tests.fidelity.conftest import TinyCheckpoint
from tests.fidelity.test_sparse_attention import V32
from tests.support.config_files import ConfigFiles, tiny_config_files
from tests.support.decode import continuation, load_decoder, logits
from tests.support.deepseek_layout import deepseek_name, rename_tensors
from tests.support.float8_files import write_float8
from tests.support.reference import reference_logits
from tests.support.tiny_models import TINY_MODELS, TinyModel, prompt, tiny_model

Tiny = Callable[..., TinyCheckpoint]
# V4's own names are in test_compressed_attention.py.
FAMILIES = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
NAMES = [model.name for model in TINY_MODELS if model.family in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_tokens_are_those_of_the_other_layout(
    tiny: Tiny, name: str, device: str, tmp_path: Path
) -> None:
    checkpoint = tiny(name)
    folder = tmp_path / "renamed"
    shutil.copytree(checkpoint.folder, folder)
    names = rename_tensors(folder)
    assert {"embed.weight", "head.weight", "norm.weight", "layers.0.attn.wkv_b.weight"} <= {*names}
    assert any(".ffn.experts.0.w1.weight" in name for name in names)
    assert not any("proj" in name.replace("indexer.weights_proj", "") for name in names)
    decoder = load_decoder(folder, device)
    # Every tensor has a place in the model.
    assert {source.name for source in decoder.spec.sources()} == {*names}
    assert np.abs(logits(decoder, prompt(), 37) - checkpoint.logits).max() < 1e-4
    found = continuation(decoder, prompt(), 16).token_ids
    assert found == checkpoint.continuation.token_ids[:16]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float8_e8m0fnu])
@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
def test_fp8_with_its_scales(
    tmp_path: Path, name: str, scale_dtype: torch.dtype, device: str
) -> None:
    reference = write_float8(tiny_model(name).build(), tmp_path, scale_dtype=scale_dtype)
    names = rename_tensors(tmp_path)
    assert "layers.0.attn.wq_a.scale" in names
    decoder = load_decoder(tmp_path, device)
    kept = kept_matrices(decoder.spec, open_checkpoint(tmp_path), decoder.ops)
    assert sum(each.format.name == "f8_e4m3" for each in kept) > 20
    found = logits(decoder, prompt(), 37)
    assert np.abs(found - reference_logits(reference, prompt())).max() < 1e-4


def test_files_for_several_processes_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    shutil.copytree(tiny("deepseek_v3").folder, folder)
    rename_tensors(folder)
    (folder / "model0-mp1.safetensors").rename(folder / "model0-mp2.safetensors")
    shutil.copy(folder / "model0-mp2.safetensors", folder / "model1-mp2.safetensors")
    with pytest.raises(CheckpointError, match="several processes") as refusal:
        open_checkpoint(folder)
    assert "--model-parallel 1" in refusal.value.remedy


def test_a_missing_tensor_is_named_as_in_the_files() -> None:
    files = tiny_config_files("deepseek_v32")
    renamed = {deepseek_name(name): header for name, header in files.tensors.items()}
    assert make_spec(replace(files, tensors=renamed)).family == "deepseek_v32"
    missing = "layers.1.attn.indexer.wk.weight"
    del renamed[missing]
    with pytest.raises(CheckpointError, match=missing):
        make_spec(replace(files, tensors=renamed))


# The config beside DeepSeek's inference code -----------------------------------------------------


def _inference_config(config: dict[str, Any]) -> dict[str, Any]:
    """Of a published one, as far as that code knows it."""
    scaling = config.get("rope_scaling") or config["rope_parameters"]
    names = {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "inter_dim": "intermediate_size",
        "moe_inter_dim": "moe_intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_dense_layers": "first_k_dense_replace",
        "n_heads": "num_attention_heads",
        "n_routed_experts": "n_routed_experts",
        "n_shared_experts": "n_shared_experts",
        "n_activated_experts": "num_experts_per_tok",
        "n_expert_groups": "n_group",
        "n_limited_groups": "topk_group",
        "route_scale": "routed_scaling_factor",
        "kv_lora_rank": "kv_lora_rank",
        "qk_nope_head_dim": "qk_nope_head_dim",
        "qk_rope_head_dim": "qk_rope_head_dim",
        "v_head_dim": "v_head_dim",
        "max_seq_len": "max_position_embeddings",
    }
    made = {own: config[name] for own, name in names.items()}
    for key in ("index_n_heads", "index_head_dim", "index_topk"):
        if key in config:
            made[key] = config[key]
    if config["q_lora_rank"]:
        made["q_lora_rank"] = config["q_lora_rank"]
    if config["model_type"] != "deepseek_v2":
        made["score_func"] = "sigmoid"
    return {
        **made,
        "original_seq_len": scaling["original_max_position_embeddings"],
        "rope_factor": scaling["factor"],
        "mscale": scaling["mscale"],
    }


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "deepseek_v32"])
def test_the_inference_code_s_config_says_the_same(
    make: Callable[[TinyModel], TinyCheckpoint], name: str, tmp_path: Path
) -> None:
    plain = tiny_model(name)
    # It has one number for what transformers has two, and chooses groups wherever there are some.
    rope = {**plain.changes["rope_parameters"], "mscale": 0.8, "mscale_all_dim": 0.8}
    grouped = {"topk_method": "group_limited_greedy"} if name == "deepseek_v2" else {}
    changes = {**plain.changes, "rope_parameters": rope, **grouped}
    checkpoint = make(replace(plain, name=f"{name}-inference", changes=changes))
    folder = tmp_path / "converted"
    shutil.copytree(checkpoint.folder, folder)
    rename_tensors(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(_inference_config(config)))
    decoder = load_decoder(folder, "numpy")
    assert decoder.spec.family == name
    assert np.abs(logits(decoder, prompt(), 37) - checkpoint.logits).max() < 1e-4


def test_v3_2_s_own_config_is_the_published_model() -> None:
    """`config_671B_v3.2.json` of DeepSeek-V3.2-Exp beside the published config.json."""
    given = {
        "max_batch_size": 1,
        "max_seq_len": 163840,
        "vocab_size": 129280,
        "dim": 7168,
        "inter_dim": 18432,
        "moe_inter_dim": 2048,
        "n_layers": 61,
        "n_dense_layers": 3,
        "n_heads": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "n_activated_experts": 8,
        "n_expert_groups": 8,
        "n_limited_groups": 4,
        "route_scale": 2.5,
        "score_func": "sigmoid",
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "dtype": "fp8",
        "scale_fmt": "ue8m0",
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 2048,
    }
    published = {
        **V32,
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
    }
    config = in_published_words(given)
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    assert spec_of_config(ConfigFiles(config)) == spec_of_config(ConfigFiles(published))
    assert in_published_words(published) == published


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "vocab_size", "max_seq_len"])
@pytest.mark.parametrize("value", [None, "7168", -1, [1]])
def test_what_makes_no_sense_in_it_is_refused(key: str, value: Any) -> None:
    given = {"dim": 64, "inter_dim": 96, "n_layers": 2, "n_heads": 4, key: value}
    with pytest.raises(CheckpointError, match="in the config is"):
        spec_of_config(ConfigFiles(in_published_words(given)))
