"""Kimi K2: DeepSeek-V3's layout under a name of its own, in fp8 and, as K2 Thinking, with routed
experts in four bits."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.memory_plan import state_bytes_per_token
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.feed_forward_spec import ExpertsSpec
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.config_files import ConfigFiles
from tests.support.decode import continuation, load_decoder, logits
from tests.support.quantized_files import compressed, write_quantized
from tests.support.reference import reference_continuation, reference_logits
from tests.support.tiny_checkpoints import rewrite_config
from tests.support.tiny_models import TinyModel, prompt, tiny_model

# Of K2's config.json as published.
K2 = {
    "model_type": "kimi_k2",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.827,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "rope_theta": 50000.0,
    "rope_scaling": {
        "type": "yarn",
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "tie_word_embeddings": False,
}
# Names and numbers by which it differs from V3, in sizes that groups of 32 columns fill.
_TINY = TinyModel(
    "deepseek_v3-kimi",
    "DeepseekV3ForCausalLM",
    {
        **tiny_model("deepseek_v3").changes,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
    },
)
_OWN: dict[str, Any] = {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}


def test_a_trillion_parameters_of_which_a_token_uses_32_billion() -> None:
    """The counts that Moonshot AI states (arXiv:2507.20534, table 2)."""
    spec = spec_of_config(ConfigFiles(K2))
    assert spec.family == "deepseek_v3"
    assert round(sum(prod(source.shape) for source in spec.sources()) / 1e10) / 100 == 1.03
    assert 32e9 <= spec.active_parameters() < 34e9
    assert state_bytes_per_token(spec, "bfloat16") == 61 * 576 * 2
    routing = [layer.feed_forward for layer in spec.layers]
    assert not isinstance(routing[0], ExpertsSpec)
    assert isinstance(routing[1], ExpertsSpec)
    assert (routing[1].routing.numbers.groups, routing[1].routing.numbers.scale) == (1, 2.827)


def test_logits_and_tokens(make: Callable[[TinyModel], TinyCheckpoint], device: str) -> None:
    checkpoint = make(_TINY)
    expected, text = checkpoint.logits, checkpoint.continuation
    rewrite_config(checkpoint.folder, _OWN)
    decoder = load_decoder(checkpoint.folder, device)
    assert np.abs(logits(decoder, prompt(), 37) - expected).max() < 1e-4
    count = 16
    assert continuation(decoder, prompt(), count).token_ids == text.token_ids[:count]


def test_routed_experts_in_four_bits_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    left_out = ("self_attn", "shared_experts", "layers.0.mlp", "lm_head")
    reference = write_quantized(_TINY.build(), tmp_path, compressed(), left_out)
    rewrite_config(tmp_path, _OWN)
    checkpoint = open_checkpoint(tmp_path)
    formats = {
        source.name: checkpoint.format_of(source.name).name
        for source in make_spec(checkpoint).sources()
        if "mlp.experts" in source.name or "shared" in source.name
    }
    assert set(formats.values()) == {"f32", "q4_0"}
    assert all((".experts." in name) == (kept == "q4_0") for name, kept in formats.items())
    decoder = load_decoder(tmp_path, "cpu")
    assert np.abs(logits(decoder, prompt()) - reference_logits(reference, prompt())).max() < 1e-4
    expected = reference_continuation(reference, prompt(), 8)
    assert continuation(decoder, prompt(), 8).token_ids == expected.token_ids
