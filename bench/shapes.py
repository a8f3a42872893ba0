"""Published model shapes with random weights, written as GGUF, so that speed needs no download.

Speed depends on shapes and formats alone. Each model gets the shape of a published one; values are
random but of ordinary size, and every block is a block that the format's encoder could have made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

from firstlight.formats.base import Bytes
from firstlight.formats.registry import get_format
from firstlight.progress import progress

# Blocks are drawn once for this many values and repeated from a random place: drawing 5 GB anew
# takes minutes, and no engine can tell.
_DRAWN_VALUES = 1 << 22


@dataclass(frozen=True)
class Shape:
    """What a published config says of a model's size.

    Attributes:
        source: where the numbers are from.
        architecture: GGUF's general.architecture.
    """

    source: str
    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    rope_base: float
    tied: bool
    biases: bool
    context: int = 32768


SHAPES = {
    "qwen2-0.5b": Shape(
        "Qwen/Qwen2-0.5B config.json", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6, True, True
    ),
    # The sizes of Qwen2-1.5B and of R1-Distill-Qwen-1.5B, whose head is a matrix of its own.
    "qwen2-1.5b": Shape(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B config.json",
        "qwen2", 28, 1536, 8960, 12, 2, 128, 151936, 1e6, False, True,
    ),
    "llama-8b": Shape(
        "meta-llama/Llama-3.1-8B config.json",
        "llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5, False, False,
    ),
}  # fmt: skip

_GGML = {
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
FORMATS = tuple(_GGML)


def model_file(name: str, format: str, directory: Path) -> Path:
    """The GGUF of that shape and format in `directory`, written now if it is not there yet.

    Args:
        name: a key of SHAPES.
        format: one of FORMATS; every matrix is stored in it.
    """
    path = directory / f"{name}-{format}.gguf"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(SHAPES[name], format, partial, path.stem)
        partial.rename(path)
    return path


def _write(shape: Shape, format: str, path: Path, name: str) -> None:
    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(f"{name} (random weights)")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)
    _add_vocabulary(writer, shape.vocabulary)
    matrices = dict(_matrices(shape))
    for tensor, (rows, columns) in matrices.items():
        stored = (rows, get_format(format).row_bytes(columns))
        writer.add_tensor_info(
            tensor, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=_GGML[format]
        )
    vectors = dict(_vectors(shape))
    for tensor, size in vectors.items():
        writer.add_tensor_info(tensor, (size,), np.dtype(np.float32), 4 * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    total = sum(rows * columns for rows, columns in matrices.values())
    with progress(f"Writing {name}", total=total, unit="values") as advance:
        for rows, columns in matrices.values():
            writer.write_tensor_data(_random_rows(format, rows, columns, generator))
            advance(rows * columns)
    for tensor, size in vectors.items():
        values = np.zeros(size) if tensor.endswith("bias") else np.ones(size)
        writer.write_tensor_data(values.astype(np.float32))
    writer.close()


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    """The bytes, their pairs and fillers: as many tokens to load as the published model has."""
    alphabet = list(_byte_characters().values())
    pairs = [(left, right) for left in alphabet for right in alphabet][: size // 2]
    tokens = [*alphabet, *(left + right for left, right in pairs)]
    fillers = [f"<|filler {i}|>" for i in range(size - len(tokens))]
    kinds = [TokenType.NORMAL] * len(tokens) + [TokenType.UNUSED] * len(fillers)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *fillers])
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in pairs])
    writer.add_eos_token_id(size - 1)


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


_drawn: dict[str, Bytes] = {}


def _random_rows(format: str, rows: int, columns: int, generator: np.random.Generator) -> Bytes:
    """Stored rows of normally distributed values with a standard deviation of 0.02."""
    storage = get_format(format)
    if format not in _drawn:
        values = 0.02 * generator.standard_normal((_DRAWN_VALUES // 256, 256), dtype=np.float32)
        assert storage.encode is not None
        _drawn[format] = storage.encode(values).reshape(-1, storage.block_bytes)
    blocks = _drawn[format]
    wanted = rows * columns // storage.block_values
    begin = int(generator.integers(0, len(blocks)))
    chosen = np.resize(np.roll(blocks, -begin, axis=0), (wanted, storage.block_bytes))
    return chosen.reshape(rows, storage.row_bytes(columns))


def _matrices(shape: Shape) -> list[tuple[str, tuple[int, int]]]:
    query = shape.heads * shape.head_size
    key_value = shape.key_value_heads * shape.head_size
    found = [("token_embd.weight", (shape.vocabulary, shape.hidden))]
    if not shape.tied:
        found.append(("output.weight", (shape.vocabulary, shape.hidden)))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        found += [
            (f"{block}attn_q.weight", (query, shape.hidden)),
            (f"{block}attn_k.weight", (key_value, shape.hidden)),
            (f"{block}attn_v.weight", (key_value, shape.hidden)),
            (f"{block}attn_output.weight", (shape.hidden, query)),
            (f"{block}ffn_gate.weight", (shape.feed_forward, shape.hidden)),
            (f"{block}ffn_up.weight", (shape.feed_forward, shape.hidden)),
            (f"{block}ffn_down.weight", (shape.hidden, shape.feed_forward)),
        ]
    return found


def _vectors(shape: Shape) -> list[tuple[str, int]]:
    key_value = shape.key_value_heads * shape.head_size
    found = [("output_norm.weight", shape.hidden)]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        found += [
            (f"{block}attn_norm.weight", shape.hidden),
            (f"{block}ffn_norm.weight", shape.hidden),
        ]
        if shape.biases:
            found += [
                (f"{block}attn_q.bias", shape.heads * shape.head_size),
                (f"{block}attn_k.bias", key_value),
                (f"{block}attn_v.bias", key_value),
            ]
    return found
