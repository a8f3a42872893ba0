"""Tiny tokenizers, trained on the spot by the libraries that define them, also as GGUF files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_folder import load_tokenizer_folder
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from tests.support.texts import CHINESE, CODE, PROSE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CORPUS = [*PROSE.splitlines(), *CODE.splitlines(), *CHINESE.splitlines(), "haha banana aaaa abab"]


@dataclass
class Vocabulary:
    """What a GGUF file holds of a tokenizer; `keys` are further keys after "tokenizer.ggml."."""

    kind: str
    tokens: list[str | bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str | None = None
    keys: dict[str, Any] = field(default_factory=dict)


def write_gguf(path: Path, vocabulary: Vocabulary, architecture: str = "llama") -> Path:
    """A GGUF file with that tokenizer and one small tensor, by the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"{architecture}.{key}", 8)
    writer.add_uint32(f"{architecture}.attention.head_count", 2)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model(vocabulary.kind)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for key, value in vocabulary.keys.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_string(f"tokenizer.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary.tokens), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@cache
def byte_level_library(*, words: Any = None, size: int = 700) -> tokenizers.Tokenizer:
    """A byte-level tokenizer of the `tokenizers` library with three added tokens at its end."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.add_tokens(["<think>"])
    return library


def byte_level_vocabulary(library: tokenizers.Tokenizer, pre: str | None) -> Vocabulary:
    """The same as a GGUF file has it."""
    model = json.loads(library.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = library.get_vocab(with_added_tokens=True)
    tokens: list[str | bytes] = [text for text, _ in sorted(ids.items(), key=lambda item: item[1])]
    added = library.get_added_tokens_decoder()
    types = [
        NORMAL if i not in added else CONTROL if added[i].special else USER_DEFINED
        for i in range(len(tokens))
    ]
    end = library.token_to_id("<|endoftext|>")
    keys: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end}
    return Vocabulary("gpt2", tokens, types, merges=merges, pre=pre, keys=keys)


@cache
def sentencepiece_model(size: int = 700, kind: str = "bpe", **options: Any) -> bytes:
    """A SentencePiece model, by default with byte pieces and without any normalisation."""
    output = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": size,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.98,
        "num_threads": 1,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=output, **settings
    )
    return output.getvalue()


def piece_vocabulary(model: bytes, extra: Sequence[tuple[str, int]] = ()) -> Vocabulary:
    """The model as a GGUF file has it; `extra` are tokens and their types put at its end."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens: list[str | bytes] = []
    types = []
    scores = []
    for i in range(processor.vocab_size()):
        tokens.append(processor.id_to_piece(i))
        scores.append(processor.get_score(i))
        types.append(
            BYTE
            if processor.is_byte(i)
            else UNKNOWN
            if processor.is_unknown(i)
            else CONTROL
            if processor.is_control(i)
            else NORMAL
        )
    for text, kind in extra:
        tokens.append(text)
        types.append(kind)
        scores.append(-1000.0)
    keys = {
        "bos_token_id": processor.bos_id(),
        "eos_token_id": processor.eos_id(),
        "unknown_token_id": processor.unk_id(),
    }
    return Vocabulary("llama", tokens, types, scores=scores, keys=keys)


def write_library_folder(folder: Path, library: tokenizers.Tokenizer, **config: Any) -> Path:
    """A directory with tokenizer.json, tokenizer_config.json and a config.json of family llama."""
    library.save(str(folder / "tokenizer.json"))
    return write_folder(folder, **config)


def write_folder(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@cache
def piece_library() -> tokenizers.Tokenizer:
    """SentencePiece's kind in a tokenizer.json: as Llama 2's, with a space before every text."""
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    # The trainer calls byte pieces special, which they are not.
    description = json.loads(library.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return library


def _pieces(folder: Path, architecture: str) -> Tokenizer:
    vocabulary = piece_vocabulary(sentencepiece_model(), [("<|im_end|>", CONTROL)])
    path = write_gguf(folder / "tiny.gguf", vocabulary, architecture)
    return load_tokenizer(open_checkpoint(path))


def _byte_level_gguf(folder: Path) -> Tokenizer:
    vocabulary = byte_level_vocabulary(byte_level_library(), "qwen2")
    return load_tokenizer(open_checkpoint(write_gguf(folder / "tiny.gguf", vocabulary)))


def _sentencepiece_folder(folder: Path) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return load_tokenizer_folder(write_folder(folder))


EVERY_KIND: dict[str, Callable[[Path], Tokenizer]] = {
    "GGUF, pieces, Llama's": lambda folder: _pieces(folder, "llama"),
    "GGUF, pieces, Gemma's": lambda folder: _pieces(folder, "gemma3"),
    "GGUF, byte-level": _byte_level_gguf,
    "tokenizer.json, byte-level": lambda folder: load_tokenizer_folder(
        write_library_folder(folder, byte_level_library())
    ),
    "tokenizer.json, pieces": lambda folder: load_tokenizer_folder(
        write_library_folder(folder, piece_library())
    ),
    "tokenizer.model": _sentencepiece_folder,
}
"""Makes and loads a tiny tokenizer of each kind in an empty directory."""
