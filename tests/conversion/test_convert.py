"""Converted checkpoints: what they hold, and that transformers reads the same in them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.conversion.convert import Report, convert_checkpoint
from firstlight.conversion.schemes import target_of
from firstlight.errors import FirstlightError, FormatError
from firstlight.formats.registry import convert, get_format
from firstlight.loading import load
from firstlight.model.families.registry import make_spec
from firstlight.model.stored import stored_rows
from firstlight.progress import no_progress
from tests.support.decode import load_decoder, logits
from tests.support.deepseek_v4_files import write_published
from tests.support.float8_files import write_float8
from tests.support.quantized_files import awq, write_quantized
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import (
    TinyModel,
    prompt,
    tiny_model,
)

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
}
MODELS = {
    "llama": TinyModel("llama", "LlamaForCausalLM", _SIZES),
    "qwen2": TinyModel("qwen2", "Qwen2ForCausalLM", {**_SIZES, "tie_word_embeddings": True}),
    "phi3": TinyModel("phi3", "Phi3ForCausalLM", _SIZES),
    "mixtral": TinyModel("mixtral", "MixtralForCausalLM", {**_SIZES, "num_local_experts": 4}),
    "deepseek_v3": TinyModel(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {**tiny_model("deepseek_v3").changes, **_SIZES, **_LATENT},
    ),
}
TARGETS = ("int4", "int8", "q4_0", "fp8", "bf16", "f16", "f32")
_PACKED = ("int4", "int8", "q4_0")


@cache
def _source(name: str, root: Path) -> Path:
    return write_checkpoint(MODELS[name].build(), root / name)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def converted(source: Path, out: Path, weights: str, **options: Any) -> Report:
    target = target_of(weights)
    return convert_checkpoint(open_checkpoint(source), out, target, show=no_progress, **options)


def _reference(folder: Path, weights: str) -> Any:
    if weights not in _PACKED:
        return load_reference(folder)
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig

    return load_reference(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


@pytest.mark.parametrize("weights", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model(
    root: Path, tmp_path: Path, name: str, weights: str
) -> None:
    out = tmp_path / "out"
    converted(_source(name, root), out, weights)
    reference = _reference(out, weights)
    found = logits(load_decoder(out, "numpy"), prompt(40))
    assert np.abs(found - reference_logits(reference, prompt(40))).max() < 1e-4


@pytest.mark.parametrize(
    ("weights", "format"),
    [("int8", "q8_0"), ("q4_0", "q4_0"), ("bf16", "bf16"), ("f16", "f16"), ("int4", None)],
)
@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek_v3"])
def test_matrices_are_those_that_loading_would_make(
    root: Path, tmp_path: Path, name: str, weights: str, format: str | None
) -> None:
    source, out = _source(name, root), tmp_path / "out"
    report = converted(source, out, weights)
    before, after = open_checkpoint(source), open_checkpoint(out)
    assert before.tensors.keys() == after.tensors.keys()
    count, error, total = 0, 0.0, 0.0
    for key in before.tensors:
        old, new = before.weight(key), after.weight(key)
        if key.removesuffix(".weight") in report.kept or len(old.shape) == 1 or "gate.w" in key:
            np.testing.assert_array_equal(old.values(), new.values(), key)
            continue
        count += 1
        error += float(np.square(new.values() - old.values()).sum())
        total += float(np.square(old.values()).sum())
        if format is None:
            routed = ".experts." in key
            assert new.format.name == ("q4_0" if routed else "q4_1"), key
            continue
        assert new.format.name == format, key
        expected = convert(old, get_format(format))
        np.testing.assert_array_equal(new.values(), expected.values(), key)
    assert count == sum(layer.matrices for layer in report.layers) > 10
    assert report.relative == pytest.approx((error / total) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("weights", ["bf16", "f16", "f32"])
def test_logits_are_those_of_converting_on_loading(
    root: Path, tmp_path: Path, weights: str
) -> None:
    source, out = _source("deepseek_v3", root), tmp_path / "out"
    converted(source, out, weights)
    kept = load(out, "numpy", cache=False).logits(prompt(40))
    np.testing.assert_array_equal(
        kept, load(source, "numpy", weights, cache=False).logits(prompt(40))
    )


@pytest.mark.parametrize(("weights", "format"), [("int8", "int8"), ("q4_0", "q4_0")])
def test_integer_logits_are_those_of_converting_on_loading(
    root: Path, tmp_path: Path, weights: str, format: str
) -> None:
    """The table of embeddings is the one matrix that is kept, and has to be converted after."""
    source, out = _source("llama", root), tmp_path / "out"
    converted(source, out, weights)
    kept = load(out, weights=format, cache=False).logits(prompt(40))
    np.testing.assert_array_equal(
        kept, load(source, weights=format, cache=False).logits(prompt(40))
    )


def test_what_is_kept_is_named_for_the_readers(root: Path, tmp_path: Path) -> None:
    report = converted(_source("deepseek_v3", root), tmp_path / "out", "int4")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    declared = config["quantization_config"]
    assert declared["ignore"] == list(report.kept)
    assert set(report.kept) == {"model.embed_tokens", "model.layers.1.mlp.gate"}
    zeros = {key: group["weights"]["symmetric"] for key, group in declared["config_groups"].items()}
    assert zeros == {"group_0": False, "group_1": True}


def test_columns_that_fill_no_groups_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    model = TinyModel("llama", "LlamaForCausalLM", {**_SIZES, "intermediate_size": 72})
    source = write_checkpoint(model.build(), tmp_path / "source")
    report = converted(source, tmp_path / "out", "int8")
    assert {name for name in report.kept if "layers" in name} == {
        f"model.layers.{layer}.mlp.down_proj" for layer in range(2)
    }
    assert open_checkpoint(tmp_path / "out").format_of("model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_models_of_sixteen_bits(tmp_path: Path, dtype: str, weights: str) -> None:
    """Scales have the model's type where that holds them: int4's always, q8_0's in float16."""
    source = write_checkpoint(MODELS["mixtral"].build(), tmp_path / "source", dtype=dtype)
    out = tmp_path / "out"
    converted(source, out, weights)
    scales = {
        value.dtype
        for file in out.glob("*.safetensors")
        for key, value in load_file(file).items()
        if key.endswith("weight_scale")
    }
    assert scales == {torch.bfloat16 if (dtype, weights) == ("bfloat16", "int4") else torch.float16}
    if weights == "int4" or dtype == "float16":
        reference = _reference_in(out, getattr(torch, dtype))
        found = logits(load_decoder(out, "numpy"), prompt(40))
        expected = reference_logits(reference.float(), prompt(40))
        assert np.abs(found - expected).max() < (0.5 if dtype == "bfloat16" else 0.05)


def _reference_in(folder: Path, dtype: torch.dtype) -> Any:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=CompressedTensorsConfig(dequantize=True),
        experts_implementation="eager",
    ).eval()


def test_quantised_sources_are_decoded_exactly(tmp_path: Path) -> None:
    model = MODELS["deepseek_v3"]
    values = write_float8(model.build(), tmp_path / "fp8")
    converted(tmp_path / "fp8", tmp_path / "out", "f32")
    found = logits(load_decoder(tmp_path / "out", "numpy"), prompt(40))
    assert np.abs(found - reference_logits(values, prompt(40))).max() < 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    values = write_quantized(MODELS["llama"].build(), tmp_path / "awq", awq())
    converted(tmp_path / "awq", tmp_path / "again", "f32")
    found = logits(load_decoder(tmp_path / "again", "numpy"), prompt(40))
    assert np.abs(found - reference_logits(values, prompt(40))).max() < 1e-4


def test_converting_twice_changes_nothing(root: Path, tmp_path: Path) -> None:
    """What is in a format already is written as it is."""
    converted(_source("llama", root), tmp_path / "once", "int8")
    report = converted(tmp_path / "once", tmp_path / "twice", "int8")
    assert report.relative == 0
    once, twice = (open_checkpoint(tmp_path / name) for name in ("once", "twice"))
    for key in once.tensors:
        np.testing.assert_array_equal(once.weight(key).values(), twice.weight(key).values())


def test_shards_are_bounded_and_indexed(root: Path, tmp_path: Path) -> None:
    report = converted(_source("mixtral", root), tmp_path / "out", "int8", shard_bytes=30_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert report.shards == len(files) > 4
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    sizes = {file.name: [value.nbytes for value in load_file(file).values()] for file in files}
    assert sum(sum(each) for each in sizes.values()) == index["metadata"]["total_size"]
    assert index["metadata"]["total_size"] == report.bytes_after
    # A shard over the bound holds one matrix alone, with its scales and shape.
    assert all(sum(each) <= 30_000 or len(each) <= 3 for each in sizes.values())


@pytest.mark.parametrize("name", ["int3", "q4_k", "q5_0", "nvfp4", ""])
def test_formats_that_nobody_reads(name: str) -> None:
    with pytest.raises(FormatError, match="Use one of: int4, int8, q4_0, fp8, bf16, f16, f32"):
        target_of(name)


def test_values_beyond_the_format(root: Path, tmp_path: Path) -> None:
    model = MODELS["llama"].build()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e9
    source = write_checkpoint(model, tmp_path / "source")
    for weights in ("int4", "int8", "f16"):
        with pytest.raises(FormatError, match=r"layers.1.mlp.up_proj.*too large"):
            converted(source, tmp_path / weights, weights)
        assert not (tmp_path / weights).exists()
    converted(source, tmp_path / "bf16", "bf16")


def test_a_folder_that_exists_is_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FirstlightError, match=r"exists already.*Name another folder, or delete"):
        converted(_source("llama", root), tmp_path / "out", "int8")
    assert not list((tmp_path / "out").iterdir())


def test_deepseek_v4_as_published_and_its_layer_for_drafts(tmp_path: Path) -> None:
    write_published(tmp_path / "source", quantised=True)
    expected = logits(load_decoder(tmp_path / "source", "numpy"), prompt(40))
    for weights in ("f32", "int4"):
        out = tmp_path / weights
        converted(tmp_path / "source", out, weights)
        checkpoint = open_checkpoint(out)
        assert make_spec(checkpoint, predictor=True).predictor is not None
        if weights == "f32":
            np.testing.assert_array_equal(logits(load_decoder(out, "numpy"), prompt(40)), expected)
        else:
            name = "layers.2.ffn.experts.1.w1.weight"
            assert checkpoint.format_of(name).name == "q4_0"
            before = open_checkpoint(tmp_path / "source")
            (source,) = (each for each in make_spec(before).sources() if each.name == name)
            values = stored_rows(source, before, 0, source.shape[0]).values()
            error = checkpoint.weight(name).values() - values
            assert 0 < np.square(error).mean() < 0.02 * np.square(values).mean()
    # The layer's own tensors are what they were, fp8 as bfloat16 and four bits as they are.
    assert (
        load(tmp_path / "int4", "cpu", speculation="mtp", cache=False)
        .generate(prompt(9), max_tokens=4, ignore_end=True)
        .token_ids
    )
