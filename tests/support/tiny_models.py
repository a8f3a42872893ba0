"""Tiny random checkpoints of every family, in the layouts that models are published in.

Sizes are awkward on purpose: heads in groups, a vocabulary that is no round number, windows shorter
than a page, and every weight random, norms and biases too, since a norm weight of one or a bias of
zero would hide that it is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import transformers

from tests.support.tiny_checkpoints import ABSENT, randomise

PROMPT_TOKENS = 90
NEW_TOKENS = 64

_COMMON = {
    "vocab_size": 157,
    "hidden_size": 48,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Factors of a rope with 3 frequencies.
_SHORT, _LONG = [1.0, 1.25, 2.0], [1.5, 3.0, 7.5]


@dataclass(frozen=True)
class TinyModel:
    """A variant of a family.

    Attributes:
        name: "<family>" for the plain model, else "<family>-<variant>".
        model_class: transformers' class, whose config class and model types follow from it.
        changes: of the common sizes, in the vocabulary of transformers' version 5.
        older: the same model's config.json in the vocabulary of version 4, as a change of what
            version 5 writes. None: nothing in it differs from the plain model's, or the variant is
            not expressible there.
    """

    name: str
    model_class: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    older: Mapping[str, Any] | None = None

    @property
    def family(self) -> str:
        return self.name.partition("-")[0]

    def config(self) -> Any:
        """The transformers config."""
        model_class = getattr(transformers, self.model_class)
        return model_class.config_class(**{**_COMMON, **self.changes})

    def build(self) -> Any:
        """The transformers model, every parameter random, in float32."""
        model = getattr(transformers, self.model_class)(self.config())
        randomise(model, seed=sum(self.name.encode()))
        return model.eval()


def _rope(kind: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def _older(theta: Any = 10_000.0, scaling: Any = None, **more: Any) -> dict[str, Any]:
    """Version 4's keys for what version 5 has in `rope_parameters`."""
    return {"rope_parameters": ABSENT, "rope_theta": theta, "rope_scaling": scaling, **more}


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 48}
_LONGROPE = {"short_factor": _SHORT, "long_factor": _LONG}

_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 20}
_GPT_OSS_YARN = {
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
_LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
}
_INDEXER = {"index_n_heads": 9, "index_head_dim": 12, "index_topk": 24}
_DEEPSEEK_YARN = {**_YARN, "beta_fast": 32, "beta_slow": 1}
_SPARSE, _HEAVY, _SLIDING = (
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "sliding_attention",
)
_V4 = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "q_lora_rank": 20,
    "partial_rotary_factor": 0.5,
    "o_groups": 3,
    "o_lora_rank": 10,
    "index_n_heads": 8,
    "index_head_dim": 12,
    "index_topk": 5,
    "sliding_window": 13,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "intermediate_size": 20,
    "swiglu_limit": 1.5,
    "routed_scaling_factor": 1.7,
    "num_nextn_predict_layers": 0,
    "num_hidden_layers": 4,
    "layer_types": [_SLIDING, _SPARSE, _HEAVY, _SPARSE],
    "compress_rates": {_SPARSE: 4, _HEAVY: 16},
    "mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe"],
}

_DEEPSEEK = (
    TinyModel("deepseek_v4", "DeepseekV4ForCausalLM", _V4),
    TinyModel(
        "deepseek_v4-yarn",
        "DeepseekV4ForCausalLM",
        {
            **_V4,
            "head_dim": 12,
            "partial_rotary_factor": 1.0,
            "num_hidden_layers": 3,
            "layer_types": [_HEAVY, _SPARSE, _SPARSE],
            "compress_rates": {_SPARSE: 3, _HEAVY: 8},
            "mlp_layer_types": ["moe", "hash_moe", "moe"],
            "hc_mult": 3,
            "hc_sinkhorn_iters": 5,
            "o_groups": 1,
            "index_n_heads": 9,
            "index_topk": 7,
            **_rope("yarn", **_DEEPSEEK_YARN),
        },
    ),
    TinyModel(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {
            **_LATENT,
            "q_lora_rank": None,
            **_rope("yarn", **_DEEPSEEK_YARN, mscale=0.707, mscale_all_dim=0.707),
        },
        _older(
            scaling={"type": "yarn", **_DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
        ),
    ),
    TinyModel(
        "deepseek_v2-low-rank",
        "DeepseekV2ForCausalLM",
        {**_LATENT, "attention_bias": True, "topk_method": "group_limited_greedy"},
    ),
    TinyModel(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {**_LATENT, **_rope("yarn", **_DEEPSEEK_YARN, mscale=1.0, mscale_all_dim=0.8)},
        _older(scaling={"type": "yarn", **_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 0.8}),
    ),
    TinyModel(
        "deepseek_v3-halves",
        "DeepseekV3ForCausalLM",
        {
            **_LATENT,
            "q_lora_rank": None,
            "rope_interleave": False,
            "attention_bias": True,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
        },
        _older(),
    ),
    TinyModel(
        "deepseek_v32",
        "DeepseekV32ForCausalLM",
        {
            **_LATENT,
            **_INDEXER,
            **_rope("yarn", **_DEEPSEEK_YARN, mscale=1.0, mscale_all_dim=1.0),
        },
        _older(
            scaling={"type": "yarn", **_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
            layer_types=ABSENT,
            mlp_layer_types=ABSENT,
        ),
    ),
    TinyModel(
        "deepseek_v32-few",
        "DeepseekV32ForCausalLM",
        {
            **_LATENT,
            **_INDEXER,
            "index_topk": 5,
            "index_head_dim": 8,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ),
)

_WITH_EXPERTS = (
    TinyModel(
        "mixtral",
        "MixtralForCausalLM",
        {"num_local_experts": 5, "num_experts_per_tok": 2, **_rope("default", 1e6)},
        _older(1e6),
    ),
    TinyModel(
        "mixtral-sliding",
        "MixtralForCausalLM",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 15, "head_dim": 12},
    ),
    TinyModel(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {"num_experts": 7, "shared_expert_intermediate_size": 28, **_EXPERTS},
        _older(layer_types=ABSENT, qkv_bias=ABSENT, mlp_only_layers=[]),
    ),
    TinyModel(
        "qwen2_moe-partly-dense",
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 5,
            "shared_expert_intermediate_size": 12,
            "norm_topk_prob": True,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 21,
            "max_window_layers": 3,
            **_EXPERTS,
        },
        _older(layer_types=ABSENT),
    ),
    TinyModel(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {"num_experts": 9, "norm_topk_prob": True, "head_dim": 12, **_EXPERTS},
        _older(num_local_experts=ABSENT, num_experts=9),
    ),
    TinyModel(
        "qwen3_moe-partly-dense",
        "Qwen3MoeForCausalLM",
        {
            "num_experts": 4,
            "head_dim": 12,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 19,
            "tie_word_embeddings": True,
            **_EXPERTS,
        },
    ),
    TinyModel("olmoe", "OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 4}, _older()),
    TinyModel(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.7,
            "first_k_dense_replace": 1,
            "num_hidden_layers": 3,
            "head_dim": 12,
            "use_qk_norm": True,
            "attention_bias": True,
            **_EXPERTS,
        },
        _older(partial_rotary_factor=0.5),
    ),
    TinyModel(
        "glm4_moe-plain",
        "Glm4MoeForCausalLM",
        {
            "n_routed_experts": 5,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
            "head_dim": 12,
            **_EXPERTS,
        },
    ),
    TinyModel(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 36,
            "head_dim": 12,
            "sliding_window": 14,
            "swiglu_limit": 1.5,
            "num_hidden_layers": 3,
            **_rope("yarn", 150_000.0, **_GPT_OSS_YARN),
        },
        _older(150_000.0, {"rope_type": "yarn", **_GPT_OSS_YARN}),
    ),
)

TINY_MODELS = (
    *_WITH_EXPERTS,
    *_DEEPSEEK,
    TinyModel("llama", "LlamaForCausalLM", _rope("default"), _older()),
    TinyModel("llama-biases", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    TinyModel(
        "llama-3",
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "head_dim": 16, **_rope("llama3", 500_000.0, **_LLAMA3)},
        _older(500_000.0, {"rope_type": "llama3", **_LLAMA3}),
    ),
    TinyModel(
        "llama-linear",
        "LlamaForCausalLM",
        _rope("linear", factor=4.0),
        _older(scaling={"type": "linear", "factor": 4.0}),
    ),
    TinyModel(
        "llama-dynamic",
        "LlamaForCausalLM",
        {"max_position_embeddings": 64, **_rope("dynamic", factor=4.0)},
        _older(scaling={"type": "dynamic", "factor": 4.0}),
    ),
    TinyModel("mistral", "MistralForCausalLM", {"sliding_window": 13}, _older()),
    TinyModel("mistral-wide-heads", "MistralForCausalLM", {"sliding_window": None, "head_dim": 12}),
    TinyModel("qwen2", "Qwen2ForCausalLM", _rope("default", 1e6), _older(1e6, layer_types=ABSENT)),
    TinyModel(
        "qwen2-sliding",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
        _older(layer_types=ABSENT),
    ),
    TinyModel(
        "qwen2-yarn",
        "Qwen2ForCausalLM",
        {"max_position_embeddings": 48, **_rope("yarn", 1e6, **_YARN)},
        _older(1e6, {"type": "yarn", **_YARN}, layer_types=ABSENT),
    ),
    TinyModel(
        "qwen3",
        "Qwen3ForCausalLM",
        {"head_dim": 12, "tie_word_embeddings": True, **_rope("default", 1e6)},
        _older(1e6, layer_types=ABSENT),
    ),
    TinyModel(
        "qwen3-mixed",
        "Qwen3ForCausalLM",
        {
            "head_dim": 12,
            "attention_bias": True,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 17,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    TinyModel(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "num_hidden_layers": 3,
            "sliding_window": 15,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
        _older(layer_types=ABSENT, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=ABSENT),
    ),
    TinyModel(
        "gemma3",
        "Gemma3ForCausalLM",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "num_hidden_layers": 7,
            "sliding_window": 14,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        _older(
            1e6,
            {"rope_type": "linear", "factor": 8.0},
            rope_local_base_freq=10_000.0,
            layer_types=ABSENT,
            sliding_window_pattern=6,
            tie_word_embeddings=ABSENT,
        ),
    ),
    TinyModel(
        "phi3",
        "Phi3ForCausalLM",
        {"sliding_window": 19, "rms_norm_eps": 1e-3, "original_max_position_embeddings": 512},
        _older(),
    ),
    TinyModel(
        "phi3-long",
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 100,
            **_rope("longrope", partial_rotary_factor=0.75, **_LONGROPE),
        },
        _older(scaling={"type": "longrope", **_LONGROPE}, partial_rotary_factor=0.75),
    ),
    TinyModel("olmo2", "Olmo2ForCausalLM", {"attention_bias": True}, _older()),
    TinyModel(
        "smollm3",
        "SmolLM3ForCausalLM",
        {"num_hidden_layers": 5},
        _older(ABSENT, tie_word_embeddings=ABSENT, layer_types=ABSENT, no_rope_layers=ABSENT),
    ),
    TinyModel(
        "smollm3-sliding",
        "SmolLM3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 18,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
        _older(2e6, layer_types=ABSENT),
    ),
    TinyModel(
        "granite",
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 0.5,
            "attention_bias": True,
        },
        _older(),
    ),
)
FAMILIES = tuple(dict.fromkeys(model.family for model in TINY_MODELS))


def tiny_model(name: str) -> TinyModel:
    """The variant of that name."""
    return next(model for model in TINY_MODELS if model.name == name)


def prompt(length: int = PROMPT_TOKENS, seed: int = 0) -> list[int]:
    """Random token ids below every tiny model's vocabulary size."""
    generator = np.random.default_rng(seed)
    return [int(token) for token in generator.integers(0, _COMMON["vocab_size"], length)]
