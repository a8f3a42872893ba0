"""GGUF files converted to folders of safetensors, with transformers as their reader."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from firstlight.conversion.convert import Report, convert_checkpoint
from firstlight.conversion.schemes import target_of
from firstlight.errors import UnsupportedModelError
from firstlight.formats.base import Weight
from firstlight.formats.plain import F32
from firstlight.formats.registry import convert, get_format
from firstlight.progress import no_progress
from tests.support.decode import load_decoder, logits
from tests.support.reference import load_reference, reference_logits
from tests.support.texts import all_texts
from tests.support.tiny_gguf import expressible, write_gguf
from tests.support.tiny_models import TINY_MODELS, prompt, tiny_model
from tests.support.tiny_tokenizers import (
    CONTROL,
    USER_DEFINED,
    byte_level_library,
    byte_level_vocabulary,
    piece_vocabulary,
    sentencepiece_model,
)
from tests.support.tiny_tokenizers import write_gguf as write_gguf_tokenizer

_TOKENS = prompt(60)
_REFUSED = ("llama-3", "gpt_oss", "deepseek_v2", "deepseek_v2-low-rank", "deepseek_v3")
_NAMES = [model.name for model in TINY_MODELS if expressible(model) and model.name not in _REFUSED]
_ADDED = (("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED))


def converted(source: Path, out: Path, weights: str) -> Report:
    target = target_of(weights)
    return convert_checkpoint(open_checkpoint(source), out, target, show=no_progress)


_LLAMA_3_2 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _write(name: str, path: Path) -> Path:
    tiny = tiny_model("llama-3" if name == "llama-3.2" else name)
    if name == "llama-3.2":
        changes = {**tiny.changes, "rope_parameters": _LLAMA_3_2, "head_dim": 64}
        tiny = replace(tiny, changes=changes)
    tiny = expressible(tiny)
    assert tiny is not None
    return write_gguf(tiny, tiny.build(), path)


@pytest.mark.parametrize("name", [*_NAMES, "llama-3.2"])
def test_transformers_reads_the_same_model(tmp_path: Path, name: str) -> None:
    source, out = _write(name, tmp_path / "model.gguf"), tmp_path / "out"
    converted(source, out, "f32")
    expected = logits(load_decoder(source, "numpy"), _TOKENS)
    assert np.abs(logits(load_decoder(out, "numpy"), _TOKENS) - expected).max() < 1e-5
    assert np.abs(reference_logits(load_reference(out), _TOKENS) - expected).max() < 1e-4


@pytest.mark.parametrize("name", _REFUSED)
def test_others_are_refused(tmp_path: Path, name: str) -> None:
    source = _write(name, tmp_path / "model.gguf")
    with pytest.raises(
        UnsupportedModelError, match=r"GGUF file of a kind|do not correspond"
    ) as caught:
        converted(source, tmp_path / "out", "int8")
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pieces", "gemma3", "phi3", "byte-level"])
def test_the_tokenizer_is_the_same_for_both_readers(tmp_path: Path, kind: str) -> None:
    from firstlight.conversion.gguf_tokenizer_files import write_tokenizer

    if kind == "byte-level":
        vocabulary, architecture = byte_level_vocabulary(byte_level_library(), "qwen2"), "qwen2"
    else:
        vocabulary = piece_vocabulary(sentencepiece_model(), _ADDED)
        architecture = "llama" if kind == "pieces" else kind
    source = write_gguf_tokenizer(tmp_path / "tiny.gguf", vocabulary, architecture)
    checkpoint = open_checkpoint(source)
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(checkpoint, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ours, theirs = load_tokenizer(checkpoint), AutoTokenizer.from_pretrained(folder)
    from firstlight.checkpoint.tokenizer_folder import load_tokenizer_folder

    again = load_tokenizer_folder(folder)
    assert again.end_ids == ours.end_ids and again.beginning_id == ours.beginning_id
    for text in [*all_texts().values(), "a<|im_start|>b <think>  c<|im_end|>", " x", ""]:
        ids = ours.encode(text)
        assert again.encode(text) == ids, text[:60]
        assert theirs.encode(text) == ids, text[:60]
        assert again.decode(ids) == ours.decode(ids), text[:60]


def test_in_integers(tmp_path: Path) -> None:
    """Of rows that lie in another order in GGUF files, which scales must go with."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    tiny = replace(tiny_model("llama"), changes=sizes)
    model = tiny.build()
    source = write_gguf(tiny, model, tmp_path / "model.gguf")
    for weights, format in (("int8", "q8_0"), ("q4_0", "q4_0")):
        report = converted(source, tmp_path / weights, weights)
        assert sum(layer.matrices for layer in report.layers) == 2 * 7 + 1
        checkpoint = open_checkpoint(tmp_path / weights)
        for name, values in model.state_dict().items():
            if "proj" in name:
                stored = Weight(F32, values.shape, values.numpy().view(np.uint8), name)
                expected = convert(stored, get_format(format)).values()
                np.testing.assert_array_equal(checkpoint.weight(name).values(), expected, name)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (config["dtype"], config["model_type"]) == ("bfloat16", "llama")
    assert not (tmp_path / "int8" / "tokenizer.json").exists()  # the file has none


def test_generation_defaults_go_along(tmp_path: Path) -> None:
    source = _write("llama", tmp_path / "model.gguf")
    checkpoint = open_checkpoint(source)
    said = {"general.sampling.temp": 0.7, "tokenizer.ggml.eos_token_id": 3}
    changed = replace(checkpoint, config={**checkpoint.config, **said})
    convert_checkpoint(changed, tmp_path / "out", target_of("bf16"), show=no_progress)
    found = open_checkpoint(tmp_path / "out").generation
    assert (found.temperature, found.stop_token_ids) == (0.7, (3,))
