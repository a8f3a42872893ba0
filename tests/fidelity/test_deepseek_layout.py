"""Checkpoints whose tensors have DeepSeek's own names are the models that they are elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import CheckpointError
from firstlight.model.families.registry import make_spec
from firstlight.model.matrices import kept_matrices
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.config_files import tiny_config_files
from tests.support.decode import continuation, load_decoder, logits
from tests.support.deepseek_layout import deepseek_name, rename_tensors
from tests.support.float8_files import write_float8
from tests.support.reference import reference_logits
from tests.support.tiny_models import TINY_MODELS, prompt, tiny_model

Tiny = Callable[..., TinyCheckpoint]
NAMES = [model.name for model in TINY_MODELS if model.family.startswith("deepseek")]


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
