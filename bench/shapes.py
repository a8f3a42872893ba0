"""Published model shapes with random weights, written as GGUF, so that speed needs no download.

Speed depends on shapes and formats alone. Each model gets the shape of a published one; values are
random but of ordinary size, and every block is a block that the format's encoder could have made.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from published import SHAPES, Shape

from firstlight.formats.base import Bytes
from firstlight.formats.registry import get_format
from firstlight.progress import progress

# Blocks are drawn once for this many values and repeated from a random place: drawing 5 GB anew
# takes minutes, and no engine can tell.
_DRAWN_VALUES = 1 << 22


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
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)
    shape.describe(writer)
    _add_vocabulary(writer, shape.vocabulary)
    matrices = shape.matrices()
    for tensor, sizes in matrices.items():
        stored = (*sizes[:-1], get_format(format).row_bytes(sizes[-1]))
        writer.add_tensor_info(
            tensor, stored, np.dtype(np.uint8), prod(stored), raw_dtype=_GGML[format]
        )
    routers = shape.routers()
    for tensor, sizes in routers.items():
        writer.add_tensor_info(tensor, sizes, np.dtype(np.float32), 4 * prod(sizes))
    vectors = shape.vectors()
    for tensor, size in vectors.items():
        writer.add_tensor_info(tensor, (size,), np.dtype(np.float32), 4 * size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    total = sum(map(prod, matrices.values()))
    with progress(f"Writing {name}", total=total, unit="values") as advance:
        for *rows, columns in matrices.values():
            writer.write_tensor_data(_random_rows(format, prod(rows), columns, generator))
            advance(prod(rows) * columns)
    for sizes in routers.values():
        writer.write_tensor_data(0.02 * generator.standard_normal(sizes, dtype=np.float32))
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
