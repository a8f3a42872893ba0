"""Model files for tests: written by the packages that define the formats, or byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

Array = NDArray[Any]

# The names that the safetensors package takes, by the names that it writes.
SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip


def safetensors_by_package(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A file as the safetensors package writes it: name -> (dtype, shape, bytes)."""
    buffers = {name: np.frombuffer(data, np.uint8) for name, (_, _, data) in tensors.items()}
    return bytes(
        safetensors.serialize(
            {
                name: safetensors.TensorSpec(
                    dtype=SAFETENSORS_DTYPES[dtype],
                    shape=list(shape),
                    data_ptr=buffers[name].ctypes.data,
                    data_len=len(data),
                )
                for name, (dtype, shape, data) in tensors.items()
            }
        )
    )


def safetensors_by_hand(header: object, data: bytes = b"") -> bytes:
    """A file with any header at all: bytes as they are, anything else as JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_folder(folder: Path, shards: Mapping[str, bytes], config: object = None) -> Path:
    """A model directory: one shard as model.safetensors, or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    weight_map = {}
    for name, content in shards.items():
        (folder / name).write_bytes(content)
        length = int.from_bytes(content[:8], "little")
        weight_map.update(dict.fromkeys(json.loads(content[8 : 8 + length]), name))
    if len(shards) > 1:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def gguf_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_key(key: str | bytes, kind: int, value: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + value


def gguf_tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's description; `shape` outermost first, as everywhere but in the file."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return gguf_string(name) + axes + struct.pack("<IQ", kind, offset)


def gguf_by_hand(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file from its pieces, `data` where the first aligned tensor belongs."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def small_gguf() -> bytes:
    """A whole file of some hundred bytes with every kind of metadata and three tensors."""
    tokens = [b"<s>", b"", "wörld".encode(), b"<end_of_turn>", b"\xff\xfe"]
    keys = [
        gguf_key("general.architecture", 8, gguf_string("llama")),
        gguf_key("llama.block_count", 4, struct.pack("<I", 2)),
        gguf_key("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        gguf_key("general.license", 8, gguf_string("mit")),
        gguf_key("tokenizer.ggml.add_bos_token", 7, b"\x01"),
        gguf_key("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0)),
        gguf_key(
            "tokenizer.ggml.tokens",
            9,
            struct.pack("<IQ", 8, len(tokens)) + b"".join(map(gguf_string, tokens)),
        ),
        gguf_key("tokenizer.ggml.scores", 9, struct.pack("<IQ5f", 6, 5, *range(5))),
        gguf_key("tokenizer.ggml.token_type", 9, struct.pack("<IQ5i", 5, 5, 3, 1, 1, 3, 6)),
        gguf_key("nested", 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQH", 2, 1, 7) * 2),
    ]
    tensors = [
        gguf_tensor("a", (2, 3), 0, 0),
        gguf_tensor("b", (1, 32), 8, 32),
        gguf_tensor("c", (5,), 1, 96),
    ]
    rng = np.random.default_rng(0)
    data = bytearray(rng.integers(0, 256, 96 + 10, dtype=np.uint8).tobytes())
    data[32:34] = struct.pack("<e", 0.5)  # the scale of the q8_0 block is a finite number
    return gguf_by_hand(keys, tensors, bytes(data))
