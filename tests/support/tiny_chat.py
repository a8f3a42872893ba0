"""A tiny llama that can chat: random weights, a byte-level tokenizer and a chat template.

Written with NumPy, `safetensors` and `tokenizers` alone, since importing transformers takes longer
than most tests that need a model only to have something to talk to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY_SIZE = len(_BYTES) + len(SPECIAL_TOKENS)

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_HEADS, _KEY_VALUE_HEADS = 4, 2


def write_chat_model(
    folder: Path,
    *,
    context_length: int = 512,
    layers: int = 2,
    hidden_size: int = 32,
    shards: int = 1,
    template: str | None = TEMPLATE,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model directory.

    Args:
        shards: how many safetensors files the layers are spread over, with an index if several.
        template: the chat template; None for a base model.
        config: keys of config.json to add or replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_VALUE_HEADS,
        "max_position_embeddings": context_length,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": token_id("<|end|>"),
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    write_tokenizer(folder, template)
    tensors = random_tensors(layers, hidden_size, seed)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """tokenizer.json with one token a byte, and tokenizer_config.json with the template."""
    tokenizer = Tokenizer(models.BPE({text: id for id, text in enumerate(_BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def token_id(text: str) -> int:
    """The id of a special token or of one ASCII character."""
    if text in SPECIAL_TOKENS:
        return len(_BYTES) + SPECIAL_TOKENS.index(text)
    ((byte, _),) = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    ).pre_tokenize_str(text)
    return _BYTES.index(byte)


def random_tensors(layers: int, hidden_size: int, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of the model, float32, scaled so that activations stay near one."""
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        values = generator.standard_normal((rows, columns), np.float32)
        return np.asarray(scale * values, np.float32)

    def norm() -> np.ndarray:
        return generator.uniform(0.5, 1.5, hidden_size).astype(np.float32)

    narrow = 1.3 * hidden_size**-0.5
    key_value_size = hidden_size // _HEADS * _KEY_VALUE_HEADS
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY_SIZE, hidden_size, 1.0)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": norm(),
            f"{prefix}self_attn.q_proj.weight": matrix(hidden_size, hidden_size, narrow),
            f"{prefix}self_attn.k_proj.weight": matrix(key_value_size, hidden_size, narrow),
            f"{prefix}self_attn.v_proj.weight": matrix(key_value_size, hidden_size, narrow),
            f"{prefix}self_attn.o_proj.weight": matrix(hidden_size, hidden_size, narrow),
            f"{prefix}post_attention_layernorm.weight": norm(),
            f"{prefix}mlp.gate_proj.weight": matrix(2 * hidden_size, hidden_size, narrow),
            f"{prefix}mlp.up_proj.weight": matrix(2 * hidden_size, hidden_size, narrow),
            f"{prefix}mlp.down_proj.weight": matrix(hidden_size, 2 * hidden_size, narrow),
        }
    tensors["model.norm.weight"] = norm()
    tensors["lm_head.weight"] = matrix(VOCABULARY_SIZE, hidden_size, narrow)
    return tensors
