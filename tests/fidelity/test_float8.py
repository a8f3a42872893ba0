"""Checkpoints in fp8 as they are published: exact weights, and the logits that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import CheckpointError, FirstlightError, UnsupportedModelError
from firstlight.formats.registry import get_format
from firstlight.loading import check_formats
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec
from firstlight.model.matrices import kept_matrices
from firstlight.model.weights import load_weights
from tests.support.decode import continuation, load_decoder, logits
from tests.support.float8_files import published, write_float8
from tests.support.reference import reference_continuation, reference_logits
from tests.support.tiny_checkpoints import rewrite_config
from tests.support.tiny_models import (
    NEW_TOKENS,
    prompt,
    tiny_model,
)

PROJECTION = "model.layers.0.self_attn.kv_b_proj.weight"
SCALES = f"{PROJECTION}_scale_inv"


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3"])
def test_logits_and_tokens_are_those_of_the_dequantised_model(
    tmp_path: Path, name: str, scale_dtype: torch.dtype, device: str
) -> None:
    reference = write_float8(tiny_model(name).build(), tmp_path, scale_dtype=scale_dtype)
    decoder = load_decoder(tmp_path, device)
    checkpoint = open_checkpoint(tmp_path)
    for key, value in published(reference).items():
        if "_proj" in key:
            np.testing.assert_array_equal(checkpoint.weight(key).values(), value.numpy(), key)
    kept = {each.source.name: each for each in kept_matrices(decoder.spec, checkpoint, decoder.ops)}
    assert all(each.in_place for key, each in kept.items() if "_proj" in key)
    assert any("experts" in key for key in kept) == (name == "deepseek_v3")
    found = logits(decoder, prompt(), 37)
    assert np.abs(found - reference_logits(reference, prompt())).max() < 1e-4
    expected = reference_continuation(reference, prompt(), NEW_TOKENS)
    assert continuation(decoder, prompt(), NEW_TOKENS).token_ids == expected.token_ids


def test_converting_on_loading_decodes_exactly(tmp_path: Path, device: str) -> None:
    reference = write_float8(tiny_model("deepseek_v3").build(), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    spec, ops = make_spec(checkpoint), open_device(device, exact=True)
    decoder = Decoder(spec, load_weights(spec, checkpoint, ops, get_format("f32")), ops)
    found = logits(decoder, prompt())
    assert np.abs(found - reference_logits(reference, prompt())).max() < 1e-4


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[..., Path]:
    """Changes of a sound checkpoint's tensors and config."""
    write_float8(tiny_model("deepseek_v3").build(), tmp_path)

    def change(tensors: dict[str, torch.Tensor | None] | None = None, **quantization: Any) -> Path:
        path = tmp_path / "model.safetensors"
        kept = {**load_file(path), **(tensors or {})}
        save_file({key: value for key, value in kept.items() if value is not None}, path)
        config = json.loads((tmp_path / "config.json").read_text())
        rewrite_config(
            tmp_path,
            {"quantization_config": {**config["quantization_config"], **quantization}},
        )
        return tmp_path

    return change


def _load(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    spec = make_spec(checkpoint)
    check_formats(checkpoint, spec)
    load_decoder(folder, "numpy")


def test_scales_that_are_missing_are_noticed_before_weights_are_read(
    damaged: Callable[..., Path],
) -> None:
    checkpoint = open_checkpoint(damaged({SCALES: None}))
    with pytest.raises(CheckpointError, match=r"kv_b_proj.weight_scale_inv' are missing"):
        check_formats(checkpoint, make_spec(checkpoint))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_number_above_zero(damaged: Callable[..., Path], value: float) -> None:
    scales = torch.ones(9, 3)
    scales[1, 2] = value
    with pytest.raises(CheckpointError, match=r"scale 5 of .*kv_b_proj.* not a number above zero"):
        _load(damaged({SCALES: scales}))


def test_a_scale_of_e8m0_that_is_nan(damaged: Callable[..., Path]) -> None:
    scales = torch.full((9, 3), 127, dtype=torch.uint8)
    scales[0, 1] = 255
    with pytest.raises(CheckpointError, match=r"scale 1 of .* is nan"):
        _load(damaged({SCALES: scales.view(torch.float8_e8m0fnu)}))


@pytest.mark.parametrize(
    ("tensors", "quantization", "error", "message"),
    [
        ({SCALES: torch.ones(3, 9)}, {}, CheckpointError, r"have shape \[3, 9\].*needs \[9, 3\]"),
        ({SCALES: torch.ones(27)}, {}, CheckpointError, r"have shape \[27\]"),
        ({SCALES: torch.ones(9, 3, dtype=torch.int32)}, {}, CheckpointError, "stored as 'i32'"),
        ({}, {"weight_block_size": [128, 128]}, CheckpointError, "in blocks of 128 by 128"),
        ({}, {"weight_block_size": [0, 128]}, CheckpointError, "not two sizes of a block"),
        ({}, {"weight_block_size": "128"}, CheckpointError, "not two sizes of a block"),
        ({}, {"weight_block_size": None}, UnsupportedModelError, "without 'weight_block_size'"),
        ({}, {"fmt": "e5m2"}, UnsupportedModelError, "values of type 'e5m2'"),
        ({}, {"quant_method": "mystery"}, UnsupportedModelError, "method 'mystery'"),
        ({}, {"quant_method": 8}, UnsupportedModelError, "method 8"),
    ],
)
def test_declarations_that_do_not_fit(
    damaged: Callable[..., Path],
    tensors: dict[str, torch.Tensor | None],
    quantization: dict[str, Any],
    error: type[FirstlightError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        _load(damaged(tensors, **quantization))


def test_fp8_without_a_declaration(damaged: Callable[..., Path]) -> None:
    folder = damaged()
    rewrite_config(folder, {"quantization_config": None})
    with pytest.raises(CheckpointError, match="no 'quantization_config' to say in which blocks"):
        _load(folder)
