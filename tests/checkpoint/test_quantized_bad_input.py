"""Quantised checkpoints that are damaged, contradict themselves, or are of another method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.quantization import quantization_of
from firstlight.errors import CheckpointError, FirstlightError, UnsupportedModelError
from firstlight.model.families.registry import make_spec
from tests.support.quantized_files import (
    Scheme,
    Tensors,
    awq,
    compressed,
    gptq,
    modelopt_nvfp4,
    save,
    write_quantized,
)
from tests.support.tiny_models import TinyModel

_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
_LLAMA = TinyModel("llama", "LlamaForCausalLM", _SIZES)

Change = Callable[[Tensors], None]


def _put(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({name: value})


def _drop(name: str) -> Change:
    return lambda tensors: tensors.update({name: torch.empty(0)})


def _entry(name: str, value: float) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].reshape(-1)[3] = value

    return change


# scheme, change, words of the error
_DAMAGED: dict[str, tuple[Scheme, Change, str]] = {
    "no-scales": (gptq(), _drop("scales"), r"'m.scales', which belongs to it, is missing"),
    "no-zeros": (awq(), _drop("qzeros"), r"'m.qzeros', which belongs to it, is missing"),
    "zeros-shape": (
        awq(),
        _put("qzeros", torch.zeros(2, 6, dtype=torch.int32)),
        r"'m.qzeros' has shape \[2, 6\].* needs \[4, 6\]",
    ),
    "zeros-type": (
        gptq(),
        _put("qzeros", torch.zeros(4, 6)),
        r"'m.qzeros' is stored as 'f32', not as one of i32",
    ),
    "scales-shape": (
        gptq(),
        _put("scales", torch.ones(48, 4)),
        r"'m.scales' has shape \[48, 4\].* needs \[4, 48\]",
    ),
    "scales-type": (
        gptq(),
        _put("scales", torch.ones(4, 48, dtype=torch.int32)),
        r"'m.scales' is stored as 'i32', not as one of f16, bf16, f32",
    ),
    "nan-scale": (gptq(), _entry("scales", float("nan")), "has a scale of nan, for row 3"),
    "zero-scale": (awq(), _entry("scales", 0.0), "has a scale of 0.0, for row 3 and group 0"),
    "infinite-scale": (gptq(), _entry("scales", float("inf")), "has a scale of inf"),
    "group-too-large": (gptq(), _entry("g_idx", 4), "puts column 3 into group 4, and there are 4"),
    "group-negative": (gptq(), _entry("g_idx", -1), "puts column 3 into group -1"),
    "groups-shape": (
        gptq(),
        _put("g_idx", torch.zeros(64, dtype=torch.int32)),
        r"'m.g_idx' has shape \[64\].* needs \[128\]",
    ),
    "three-axes": (
        gptq(),
        _put("qweight", torch.zeros(2, 16, 48, dtype=torch.int32)),
        r"has shape \[2, 16, 48\], and firstlight reads matrices",
    ),
    "no-factor": (modelopt_nvfp4(), _drop("weight_scale_2"), "'m.weight_scale_2'.* is missing"),
    "zero-factor": (
        modelopt_nvfp4(),
        _put("weight_scale_2", torch.tensor(0.0)),
        "'m.weight_scale_2' is 0.0, not a number above zero",
    ),
    "nan-float8-scale": (
        modelopt_nvfp4(),
        _put("weight_scale", torch.full((48, 8), float("nan")).to(torch.float8_e4m3fn)),
        "'m.weight_scale' holds a scale that is NaN",
    ),
    "block-shape": (
        modelopt_nvfp4(),
        _put("weight_scale", torch.ones(48, 4).to(torch.float8_e4m3fn)),
        r"has shape \[48, 4\].* needs \[48, 8\]",
    ),
}
_COMPRESSED: dict[str, tuple[Scheme, Change, str]] = {
    "stated-shape": (
        compressed(),
        _put("weight_shape", torch.tensor([48, 127])),
        r"states a shape of \[48, 127\], and the codes are \[48, 128\]",
    ),
    "no-scale": (compressed(), _drop("weight_scale"), "'m.weight_scale'.* is missing"),
    "no-zeros": (
        compressed(symmetric=False),
        _drop("weight_zero_point"),
        "'m.weight_zero_point'.* is missing",
    ),
    "float8-scale": (
        compressed("float", 8, None, form="float-quantized"),
        _put("weight_scale", torch.ones(47, 1)),
        r"have shape \[47, 1\].* in blocks of 1 by all needs \[48, 1\]",
    ),
}


def _check(folder: Path, scheme: Scheme, change: Change, words: str) -> None:
    matrix = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    tensors = dict(scheme.quantise(matrix).tensors)
    change(tensors)
    kept = {f"m.{key}": value for key, value in tensors.items() if value.numel()}
    save(folder, kept, scheme.config)
    with pytest.raises(FirstlightError, match=words) as caught:
        open_checkpoint(folder).format_of("m.weight")
        open_checkpoint(folder).weight("m.weight")
    assert caught.value.remedy and str(folder) in caught.value.subject


@pytest.mark.parametrize("name", _DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    _check(tmp_path, *_DAMAGED[name])


@pytest.mark.parametrize("name", _COMPRESSED)
def test_damage_of_compressed_tensors_is_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    _check(tmp_path, *_COMPRESSED[name])


def _groups(**weights: Any) -> dict[str, Any]:
    form = weights.pop("format", "pack-quantized")
    given = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": given}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


@pytest.mark.parametrize(
    ("declared", "error", "words"),
    [
        ({"quant_method": "bitsandbytes"}, UnsupportedModelError, "method 'bitsandbytes'"),
        ({"quant_method": ["gptq"]}, UnsupportedModelError, "method"),
        ({**gptq().config, "bits": 2}, UnsupportedModelError, "method 'gptq' with 2 bits"),
        ({**gptq().config, "bits": 3}, UnsupportedModelError, "method 'gptq' with 3 bits"),
        ({**gptq().config, "bits": "4"}, CheckpointError, "'bits' in the config is '4'"),
        ({**gptq().config, "group_size": 0}, CheckpointError, "'group_size' in the config is 0"),
        (
            {**gptq().config, "checkpoint_format": "marlin"},
            UnsupportedModelError,
            "method 'gptq' in format 'marlin'",
        ),
        ({**awq().config, "version": "gemv"}, UnsupportedModelError, "packed for 'gemv'"),
        ({**awq().config, "bits": 8}, UnsupportedModelError, "method 'awq' with 8 bits"),
        ({**awq().config, "zero_point": False}, UnsupportedModelError, "without zero points"),
        (_groups(num_bits=3), UnsupportedModelError, "'pack-quantized' with 3 bits"),
        (_groups(format="marlin-24"), UnsupportedModelError, "in format 'marlin-24'"),
        (_groups(strategy="block"), UnsupportedModelError, "a scale for each 'block'"),
        ({"quant_method": "compressed-tensors"}, CheckpointError, "'config_groups'"),
        (
            {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
            UnsupportedModelError,
            "algorithm 'W4A8_AWQ'",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    declared: dict[str, Any], error: type[FirstlightError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        quantization_of({"quantization_config": declared}, "model")
    assert caught.value.remedy


def test_experts_that_disagree_with_the_config(tmp_path: Path) -> None:
    model = TinyModel("mixtral", "MixtralForCausalLM", {**_SIZES, "num_local_experts": 4})
    write_quantized(model.build(), tmp_path, awq(), ("self_attn",))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for count, words in ((5, "gate.*shape"), (3, "gate.*shape")):
        path.write_text(json.dumps({**config, "num_local_experts": count}))
        with pytest.raises(CheckpointError, match=words):
            make_spec(open_checkpoint(tmp_path))


def test_codes_without_a_config_that_explains_them(tmp_path: Path) -> None:
    write_quantized(_LLAMA.build(), tmp_path, awq())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": None}))
    with pytest.raises(CheckpointError, match="'quantization_config' that says of which kind"):
        make_spec(open_checkpoint(tmp_path))


def test_modelopt_s_older_file(tmp_path: Path) -> None:
    write_quantized(_LLAMA.build(), tmp_path, modelopt_nvfp4())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    checkpoint = open_checkpoint(tmp_path)
    assert make_spec(checkpoint).family == "llama"
    assert checkpoint.format_of("model.layers.0.mlp.up_proj.weight").name == "e2m1"


def _changes(value: Any) -> Iterator[Any]:
    """A config with each of its values, in turn, something else."""
    if not isinstance(value, dict):
        yield from (None, -1, 0, 7, 1 << 70, 1.5, "x", "", [], [1], {}, {"a": 1}, True)
        return
    yield from (None, [], {}, "x")
    for key, inner in value.items():
        for changed in _changes(inner):
            yield {**value, key: changed}
        yield {name: kept for name, kept in value.items() if name != key}


@pytest.mark.parametrize(
    "declared",
    [
        gptq().config,
        awq().config,
        modelopt_nvfp4().config,
        _groups(),
        _groups(type="float", num_bits=8, format="float-quantized", strategy="block"),
        {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    ],
)
def test_no_config_is_worse_than_an_error(declared: dict[str, Any]) -> None:
    count = 0
    for changed in _changes(declared):
        count += 1
        with suppress(FirstlightError):
            quantization_of({"quantization_config": changed}, "model")
    assert count > 30
