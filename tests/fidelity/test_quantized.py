"""Models quantised by other projects' methods: the logits that follow from their exact weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.backends import available_devices
from firstlight.backends.base import DEFINITION
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.loading import check_formats, load
from tests.support.decode import continuation, load_decoder, logits
from tests.support.quantized_files import (
    Scheme,
    awq,
    compressed,
    gptq,
    modelopt_nvfp4,
    published,
    write_quantized,
)
from tests.support.reference import reference_continuation, reference_logits
from tests.support.tiny_models import TinyModel, prompt, tiny_model

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_EXPERTS = {
    **_SIZES,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}
LLAMA = TinyModel("llama", "LlamaForCausalLM", _SIZES)
PHI3 = TinyModel("phi3", "Phi3ForCausalLM", _SIZES)
QWEN3_MOE = TinyModel("qwen3_moe", "Qwen3MoeForCausalLM", _EXPERTS)
DEEPSEEK_V3 = TinyModel(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    {
        **tiny_model("deepseek_v3").changes,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
    },
)
# The latents' product has 40 rows, which words of 8 codes fill.
_CASES: dict[str, tuple[TinyModel, Scheme]] = {
    "llama-awq": (LLAMA, awq()),
    "llama-gptq-reordered": (LLAMA, gptq(symmetric=False, reorder=True)),
    "phi3-gptq": (PHI3, gptq()),
    "phi3-gptq-reordered": (PHI3, gptq(reorder=True)),
    "qwen3_moe-awq": (QWEN3_MOE, awq()),
    "qwen3_moe-nvfp4": (QWEN3_MOE, modelopt_nvfp4()),
    "deepseek_v3-awq": (DEEPSEEK_V3, awq()),
    "deepseek_v3-nvfp4": (DEEPSEEK_V3, modelopt_nvfp4()),
}
_COMPRESSED = {
    "llama-int4": (LLAMA, compressed(dtype=torch.float16)),
    "llama-fp8": (LLAMA, compressed("float", 8, None, form="float-quantized")),
    "qwen3_moe-int4": (QWEN3_MOE, compressed(symmetric=False)),
}
_LEFT_OUT = {"qwen3_moe-awq": ("layers.1.self_attn",), "deepseek_v3-awq": ("kv_b_proj",)}


def _check(folder: Path, name: str, model: TinyModel, scheme: Scheme, device: str) -> None:
    left_out = _LEFT_OUT.get(name, ())
    reference = write_quantized(model.build(), folder, scheme, left_out)
    decoder = load_decoder(folder, device)
    checkpoint = open_checkpoint(folder)
    check_formats(checkpoint, decoder.spec)
    plain = 0
    for key, value in published(reference).items():
        if "_proj" in key:
            weight = checkpoint.weight(key)
            np.testing.assert_array_equal(weight.values(), value.numpy(), key)
            plain += weight.format.name == "f32"
    assert bool(plain) == bool(left_out)
    found = logits(decoder, prompt(), 37)
    assert np.abs(found - reference_logits(reference, prompt())).max() < 1e-4
    expected = reference_continuation(reference, prompt(), 8)
    assert continuation(decoder, prompt(), 8).token_ids == expected.token_ids


@pytest.mark.parametrize("name", _CASES)
def test_logits_and_tokens_are_those_of_the_dequantised_model(
    tmp_path: Path, name: str, device: str
) -> None:
    _check(tmp_path, name, *_CASES[name], device)


@pytest.mark.parametrize("name", _COMPRESSED)
def test_the_same_of_compressed_tensors(tmp_path: Path, name: str, device: str) -> None:
    pytest.importorskip("compressed_tensors")
    _check(tmp_path, name, *_COMPRESSED[name], device)


@pytest.mark.skipif("cpu" not in available_devices(), reason="the cpu backend is not built here")
def test_fast_kernels_serve_what_they_hold_exactly(tmp_path: Path) -> None:
    write_quantized(LLAMA.build(), tmp_path, awq())
    model = load(tmp_path)
    assert np.isfinite(model.logits(prompt())).all()
    slow = [op for op, kernel in model.backend.usage() if kernel == DEFINITION]
    assert not {"linear", "attention_block", "feed_forward_block"} & set(slow), slow
