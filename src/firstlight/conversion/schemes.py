"""How a matrix is written: which tensors it becomes, and what they hold.

| scheme | tensors of a module X |
| --- | --- |
| f32, f16, bf16 | X.weight |
| int8, q4_0 | X.weight_packed, X.weight_scale, X.weight_shape |
| int4 | the same, and X.weight_zero_point |
| fp8 | X.weight, X.weight_scale_inv: a scale for each 128 by 128 |

The middle rows are compressed-tensors' "pack-quantized" in groups of 32. int8 and q4_0 are the
formats q8_0 and q4_0 value by value, with float16 scales; int4 is asymmetric with whole zeros
(`formats/zero_points.py`), but for routed experts, which transformers reads without zeros only. Its
scales fit bfloat16 and float16 alike and have the model's own type, as readers expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats, Format, Weight
from firstlight.formats.codes import pack_nibbles, unpack_nibbles
from firstlight.formats.float8 import F8_E4M3, encode_e4m3
from firstlight.formats.legacy import Q4_0, Q8_0
from firstlight.formats.plain import BF16, F16, F32
from firstlight.formats.registry import convert
from firstlight.formats.zero_points import fit_zero_points

GROUP = 32
FLOAT8_BLOCK = 128
_LARGEST_E4M3 = np.float32(448)
_EXPERTS = r"re:.*\.experts\.\d+\..*"


@dataclass(frozen=True)
class Part:
    """One tensor of a matrix.

    Attributes:
        suffix: of its name, after the module's.
        dtype: as safetensors call it.
        shape: of it.
        constant: its bytes, where they do not depend on the matrix's values.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    constant: bytes | None = None


class Scheme(Protocol):
    """One way to write matrices.

    Attributes:
        name: what `--weights` calls it.
        row_multiple: rows are encoded in multiples of it, but for the last.
    """

    @property
    def name(self) -> str: ...

    @property
    def row_multiple(self) -> int: ...

    def takes(self, rows: int, columns: int) -> bool:
        """Whether a matrix of that shape can be written so."""

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        """The tensors of such a matrix; those without a constant lie in rows."""

    def encode(self, weight: Weight) -> tuple[tuple[Bytes, ...], Floats]:
        """Some rows of a matrix: bytes for each part without a constant, and the values that they
        stand for. FormatError where values cannot be expressed."""


@dataclass(frozen=True)
class Plain:
    """One number after another."""

    name: str
    format: Format
    row_multiple: int = 1

    def takes(self, rows: int, columns: int) -> bool:
        return True

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        return (Part("weight", self.name.upper(), (rows, columns)),)

    def encode(self, weight: Weight) -> tuple[tuple[Bytes, ...], Floats]:
        if weight.format.name == self.format.name and weight.scales is None:
            return (weight.data,), weight.decode()
        values = weight.decode()
        assert self.format.encode is not None
        data = self.format.encode(values)
        decoded = self.format.decode(data)
        if not np.isfinite(decoded).all():
            raise FormatError(
                weight.name,
                f"has values that are not finite, or too large for {self.name}",
                "Convert to bf16, which reaches as far as float32",
            )
        return (data,), decoded


@dataclass(frozen=True)
class Packed:
    """compressed-tensors' "pack-quantized", in groups of 32 columns.

    Attributes:
        bits: of a code: 4 or 8.
        symmetric: no zeros are stored.
        short_scales: scales have seven significant bits; else they are those of q4_0 or q8_0.
        scale: their type, as safetensors call it.
    """

    name: str
    bits: int
    symmetric: bool
    short_scales: bool = False
    scale: str = "F16"
    row_multiple: int = 8  # the zeros of so many rows share a word

    def for_model(self, dtype: str) -> Packed:
        """With scales of the model's own type, if that holds them."""
        fits = dtype == "F32" or self.short_scales
        return replace(self, scale=dtype if fits else "F16")

    def takes(self, rows: int, columns: int) -> bool:
        return columns % GROUP == 0

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        words, groups = columns * self.bits // 32, columns // GROUP
        shape = np.array([rows, columns], "<i8").tobytes()
        zeros = Part("weight_zero_point", "I32", (-(-rows * self.bits // 32), groups))
        return (
            Part("weight_packed", "I32", (rows, words)),
            Part("weight_scale", self.scale, (rows, groups)),
            *(() if self.symmetric else (zeros,)),
            Part("weight_shape", "I64", (2,), shape),
        )

    def encode(self, weight: Weight) -> tuple[tuple[Bytes, ...], Floats]:
        if self.short_scales:
            return self._fitted(weight)
        format = Q8_0 if self.bits == 8 else Q4_0
        blocks = convert(weight, format) if weight.scales is None else _encoded(weight, format)
        codes, scales = _taken_apart(blocks.data, format)
        data = codes if self.bits == 8 else pack_nibbles(codes)
        return (data, self._scale_bytes(scales)), blocks.decode()

    def _fitted(self, weight: Weight) -> tuple[tuple[Bytes, ...], Floats]:
        codes, scales, zeros = fit_zero_points(weight.decode(), symmetric=self.symmetric)
        wide = codes.reshape(len(codes), -1, GROUP).astype(np.float32)
        wide -= zeros[:, :, None]
        wide *= scales[:, :, None]
        data: tuple[Bytes, ...] = (pack_nibbles(codes), self._scale_bytes(scales))
        if not self.symmetric:
            data = (*data, _packed_zeros(zeros))
        return data, wide.reshape(codes.shape)

    def _scale_bytes(self, scales: Floats) -> Bytes:
        encode = _SCALES[self.scale].encode
        assert encode is not None
        return encode(scales)


_SCALES = {"F16": F16, "BF16": BF16, "F32": F32}


def _encoded(weight: Weight, format: Format) -> Weight:
    """Of a weight with scales of its own, whose format alone says nothing."""
    encode = format.fit or format.encode
    assert encode is not None
    return Weight(format, weight.shape, encode(weight.decode()), weight.name)


def _taken_apart(data: Bytes, format: Format) -> tuple[Bytes, Floats]:
    """Rows of q4_0 or q8_0 as codes uint8 [rows, columns] from 0 up, and scales [rows, blocks].

    A scale of zero becomes 1, with codes that stand for zero: readers divide by scales, or refuse
    such.
    """
    rows = len(data)
    blocks = data.reshape(rows, -1, format.block_bytes)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
    if format is Q8_0:
        codes = blocks[:, :, 2:] ^ np.uint8(128)
    else:
        halves = unpack_nibbles(blocks[:, :, 2:]).reshape(*blocks.shape[:2], 16, 2)
        codes = halves.swapaxes(2, 3).reshape(*blocks.shape[:2], GROUP)
    nothing = scales == 0
    codes = np.where(nothing[:, :, None], np.uint8(128 if format is Q8_0 else 8), codes)
    return codes.reshape(rows, -1), np.where(nothing, np.float32(1), scales)


def _packed_zeros(zeros: Bytes) -> Bytes:
    """uint8 [rows, groups] below 16 as words along the rows: uint8 [rows / 8, groups * 4]."""
    padded = np.concatenate([zeros, np.zeros((-len(zeros) % 8, zeros.shape[1]), np.uint8)])
    words = padded.reshape(-1, 8, zeros.shape[1]).swapaxes(1, 2)
    return pack_nibbles(words).reshape(len(words), -1)


@dataclass(frozen=True)
class Float8:
    """E4M3 with a float32 scale for each block of 128 by 128, as DeepSeek-V3 was published.

    Only matrices that are one block, or whole blocks: transformers takes a matrix's size over the
    number of its scales for the size of a block, and so reads others wrongly, or refuses them.
    """

    name: str = "fp8"
    row_multiple: int = FLOAT8_BLOCK

    def takes(self, rows: int, columns: int) -> bool:
        return all(size % FLOAT8_BLOCK == 0 or size < FLOAT8_BLOCK for size in (rows, columns))

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        blocks = (-(-rows // FLOAT8_BLOCK), -(-columns // FLOAT8_BLOCK))
        return Part("weight", "F8_E4M3", (rows, columns)), Part("weight_scale_inv", "F32", blocks)

    def encode(self, weight: Weight) -> tuple[tuple[Bytes, ...], Floats]:
        values = weight.decode()
        if not np.isfinite(values).all():
            raise FormatError(
                weight.name,
                "has values that are not finite",
                "Convert to bf16, or fetch the model again",
            )
        starts = (np.arange(0, size, FLOAT8_BLOCK) for size in values.shape)
        down, across = starts
        largest = np.maximum.reduceat(np.maximum.reduceat(np.abs(values), down, 0), across, 1)
        scales = np.where(largest > 0, largest / _LARGEST_E4M3, np.float32(1))
        # A subnormal largest value could make a scale of zero.
        scales = np.maximum(scales, np.finfo(np.float32).tiny).astype(np.float32)
        wide = scales.repeat(FLOAT8_BLOCK, 0).repeat(FLOAT8_BLOCK, 1)
        wide = wide[: values.shape[0], : values.shape[1]].astype(np.float32)
        codes = encode_e4m3((values / wide).astype(np.float32, copy=False))
        return (codes, scales.view(np.uint8)), F8_E4M3.decode(codes) * wide


@dataclass(frozen=True)
class Target:
    """What `--weights` asks for.

    Attributes:
        scheme: of matrices.
        experts: of the matrices of routed experts.
        head: whether the output head, where it is no embedding table, is written so too.
        embedding: whether the embedding table is.
    """

    name: str
    scheme: Scheme
    experts: Scheme
    head: bool = True
    embedding: bool = False

    def for_model(self, dtype: str) -> Target:
        """For a model of that type ("F32", "F16", "BF16")."""
        if not (isinstance(self.scheme, Packed) and isinstance(self.experts, Packed)):
            return self
        return replace(
            self, scheme=self.scheme.for_model(dtype), experts=self.experts.for_model(dtype)
        )

    def quantization_config(self, left_out: list[str], experts: bool) -> Mapping[str, Any] | None:
        """What config.json says of it, in the words of the readers.

        Args:
            left_out: names of modules whose matrices are not written by the scheme.
            experts: the model has routed experts.
        """
        if isinstance(self.scheme, Plain):
            return None
        if isinstance(self.scheme, Float8):
            return {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [FLOAT8_BLOCK, FLOAT8_BLOCK],
                "modules_to_not_convert": left_out,
            }
        assert isinstance(self.scheme, Packed) and isinstance(self.experts, Packed)
        groups = {"group_0": _group(self.scheme, "Linear")}
        if experts and self.experts != self.scheme:
            groups["group_1"] = _group(self.experts, _EXPERTS)
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": left_out,
            "kv_cache_scheme": None,
        }


def _group(scheme: Packed, target: str) -> dict[str, Any]:
    return {
        "targets": [target],
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "group",
            "group_size": GROUP,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
    }


def _plain(format: Format) -> Target:
    scheme = Plain(format.name, format)
    return Target(format.name, scheme, scheme, embedding=True)


_INT4 = Packed("int4", 4, symmetric=False, short_scales=True)
_INT4_EXPERTS = Packed("int4", 4, symmetric=True, short_scales=True)
_INT8 = Packed("int8", 8, symmetric=True)
_Q4_0 = Packed("q4_0", 4, symmetric=True)
_TARGETS = {
    target.name: target
    for target in (
        Target("int4", _INT4, _INT4_EXPERTS),
        Target("int8", _INT8, _INT8),
        Target("q4_0", _Q4_0, _Q4_0),
        Target("fp8", Float8(), Float8(), head=False),
        _plain(BF16),
        _plain(F16),
        _plain(F32),
    )
}
_ALIASES = {
    "q8_0": "int8",
    "f8_e4m3": "fp8",
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
}


def target_of(name: str) -> Target:
    """What `--weights` of that name stands for; FormatError where nothing is written so."""
    key = name.lower()
    target = _TARGETS.get(_ALIASES.get(key, key))
    if target is None:
        raise FormatError(
            f"--weights {name}",
            "is no format that a checkpoint can be converted to",
            f"Use one of: {', '.join(_TARGETS)}",
        )
    return target
