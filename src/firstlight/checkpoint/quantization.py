"""What `quantization_config` declares of a checkpoint's weights: methods, read by their names.

| method | what is read |
| --- | --- |
| fp8 | E4M3 in blocks, as DeepSeek-V3 was published |
| compressed-tensors | pack-, int- and float-quantized, nvfp4- and mxfp4-pack-quantized |
| gptq | 4 and 8 bits, with or without reordered columns |
| awq | 4 bits, packed for "gemm" |
| modelopt | FP8 and NVFP4 |

The layouts are in `quantized_layouts.py`, scales of fp8 in `float8_scales.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from firstlight.checkpoint.files import shown
from firstlight.errors import CheckpointError, UnsupportedModelError

PUBLISHED = "Use the model as it was published before it was quantised, or a GGUF file of it"
FETCH = "Fetch the model again: its files may be incomplete, or not of one revision"
MATCHING = "Check that the config file and the weights belong to the same model"
WHOLE = 1 << 40
"""As a block's rows or columns: all that there are."""

_LARGEST_BLOCK = 1 << 20
_E4M3 = ("e4m3", "float8_e4m3fn")


@dataclass(frozen=True)
class Float8Blocks:
    """fp8 (E4M3) with one scale for each block of a matrix.

    DeepSeek-V3 (arXiv:2412.19437), section 3.3.2; a value is its code's times its
    block's scale.

    Attributes:
        rows, columns: of a block; WHOLE for all.
        names: what the tensor of scales may be called: "{name}" is the weight's own name, "{stem}"
            that without a last "weight".
    """

    rows: int
    columns: int
    names: tuple[str, ...] = ("{name}_scale_inv", "{stem}scale")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of the scales of a matrix of that shape."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)


Layout = Literal[
    "gptq",
    "awq",
    "pack-quantized",
    "int-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "modelopt-nvfp4",
]


@dataclass(frozen=True)
class GroupCodes:
    """Codes with a scale, and perhaps a zero, for each group of columns.

    Attributes:
        layout: which tensors a matrix is stored in, and how.
        bits: of a code.
        group: columns of a group; None: all of a row.
        symmetric: whether zeros are all in the middle of the codes, as far as the config knows.
        zero_offset: what is added to zeros as they are stored (1 in GPTQ's first format).
    """

    layout: Layout
    bits: int
    group: int | None
    symmetric: bool = True
    zero_offset: int = 0

    @property
    def name(self) -> str:
        """For people: "int4 (gptq)"."""
        if "fp4" in self.layout:
            return self.layout.partition("-pack")[0].removeprefix("modelopt-")
        return f"int{self.bits} ({self.layout})"


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's weights are quantised; which of them are shows in their tensors' names.

    Attributes:
        float8: of tensors stored in fp8; None: none may be.
        codes: every kind of groups that is declared; most checkpoints have one.
    """

    float8: Float8Blocks | None = None
    codes: tuple[GroupCodes, ...] = ()


def quantization_of(config: Mapping[str, Any], subject: object) -> Quantization | None:
    """What a config declares; None where it declares nothing.

    Raises:
        CheckpointError: what it declares makes no sense.
        UnsupportedModelError: it declares another method, which the message names.
    """
    declared = config.get("quantization_config", config.get("compression_config"))
    if declared is None:
        return None
    if not isinstance(declared, Mapping):
        raise CheckpointError(
            subject, "'quantization_config' in the config is not an object", FETCH
        )
    section = _Section(declared, subject)
    method = declared.get("quant_method", "unknown")
    if method == "unknown" and "config_groups" in declared and "format" in declared:
        method = "compressed-tensors"
    read = {
        "fp8": _fp8,
        "gptq": _gptq,
        "awq": _awq,
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
    }.get(method if isinstance(method, str) else "")
    if read is None:
        raise section.unsupported(f"'quantization_config' with method {shown(method)}")
    return read(section)


@dataclass(frozen=True)
class _Section:
    """An object of the config, with errors that name its values."""

    values: Mapping[str, Any]
    subject: object

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def inside(self, key: str) -> _Section | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return _Section(value, self.subject)

    def size(self, key: str) -> int | None:
        """A number of columns; None for -1 or nothing, which stand for all."""
        value = self.get(key, -1)
        if type(value) is not int or not (value == -1 or 1 <= value <= _LARGEST_BLOCK):
            raise self.wrong(key, "a number of columns")
        return None if value == -1 else value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def wrong(self, key: str, expected: str) -> CheckpointError:
        return CheckpointError(
            self.subject,
            f"{key!r} in the config is {shown(self.values.get(key))}, not {expected}",
            FETCH,
        )

    def unsupported(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            self.subject,
            f"its weights are quantised ({what}), and firstlight does not read that yet",
            PUBLISHED,
        )


def _fp8(section: _Section) -> Quantization:
    kind = section.get("fmt", "e4m3")
    if kind not in _E4M3:
        raise section.unsupported(f"method 'fp8' with values of type {shown(kind)}")
    if section.get("weight_block_size") is None:
        raise section.unsupported("method 'fp8' without 'weight_block_size'")
    return Quantization(Float8Blocks(*_block(section, "weight_block_size")))


def _block(section: _Section, key: str) -> tuple[int, int]:
    block = section.get(key)
    if (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(type(size) is int and 1 <= size <= _LARGEST_BLOCK for size in block)
    ):
        raise section.wrong(key, "two sizes of a block")
    return block[0], block[1]


def _bits(section: _Section, key: str, allowed: tuple[int, ...], method: str) -> int:
    bits = section.get(key)
    if type(bits) is not int or not 1 <= bits <= 32:
        raise section.wrong(key, "a number of bits")
    if bits not in allowed:
        raise section.unsupported(f"method {method!r} with {bits} bits")
    return bits


def _gptq(section: _Section) -> Quantization:
    bits = _bits(section, "bits", (4, 8), "gptq")
    form = section.get("checkpoint_format", section.get("format", "gptq"))
    offsets = {"gptq": 1, "gptq_v2": 0}
    if not isinstance(form, str) or form not in offsets:
        raise section.unsupported(f"method 'gptq' in format {shown(form)}")
    dynamic = section.get("dynamic")
    if dynamic and any(dict(rule).get("bits") for rule in _rules(section)):
        raise section.unsupported("method 'gptq' with different bits for some layers, 'dynamic'")
    group = section.size("group_size")
    symmetric = section.flag("sym", True)
    return Quantization(codes=(GroupCodes("gptq", bits, group, symmetric, offsets[form]),))


def _rules(section: _Section) -> list[Mapping[str, Any]]:
    dynamic = section.inside("dynamic")
    rules = [] if dynamic is None else list(dynamic.values.values())
    return [rule for rule in rules if isinstance(rule, Mapping)]


def _awq(section: _Section) -> Quantization:
    bits = _bits(section, "bits" if "bits" in section.values else "w_bit", (4,), "awq")
    packing = section.get("version", section.get("format", "gemm"))
    if not isinstance(packing, str) or packing.lower() != "gemm":
        raise section.unsupported(f"method 'awq' packed for {shown(packing)}")
    if not section.flag("zero_point", True):
        raise section.unsupported("method 'awq' without zero points")
    group = section.size("group_size" if "group_size" in section.values else "q_group_size")
    return Quantization(codes=(GroupCodes("awq", bits, group, symmetric=False),))


def _compressed_tensors(section: _Section) -> Quantization:
    groups = section.inside("config_groups")
    if groups is None or not groups.values:
        raise section.wrong("config_groups", "an object of groups")
    for key in ("sparsity_config", "transform_config"):
        inner = section.inside(key)
        if inner is not None and inner.values and inner.get("format", "") != "dense":
            raise section.unsupported(f"method 'compressed-tensors' with {key!r}")
    found = [_scheme(section, groups, name) for name in groups.values]
    float8 = {each for each in found if isinstance(each, Float8Blocks)}
    if len(float8) > 1:
        raise section.unsupported("method 'compressed-tensors' with several kinds of fp8")
    codes = dict.fromkeys(each for each in found if isinstance(each, GroupCodes))
    return Quantization(next(iter(float8), None), tuple(codes))


def _scheme(whole: _Section, groups: _Section, name: str) -> GroupCodes | Float8Blocks:
    group = groups.inside(name)
    weights = None if group is None else group.inside("weights")
    if group is None or weights is None:
        raise whole.unsupported(f"method 'compressed-tensors', whose {shown(name)} has no weights")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    form = group.get("format", whole.get("format"))
    symmetric = weights.flag("symmetric", True)
    strategy = weights.get("strategy")
    size = weights.size("group_size")
    if strategy is None:
        strategy = "tensor" if weights.get("group_size") is None else "group" if size else "channel"
    if not isinstance(strategy, str):
        raise weights.wrong("strategy", "text")
    what = f"method 'compressed-tensors' in format {shown(form)}"
    if form == "pack-quantized" and kind == "int" and strategy in ("group", "channel"):
        _bits(weights, "num_bits", (4, 8), "pack-quantized")
        return GroupCodes("pack-quantized", bits, size, symmetric)
    bytes_ = form in ("int-quantized", "naive-quantized") and (kind, bits) == ("int", 8)
    if bytes_ and strategy in ("group", "channel", "tensor"):
        return GroupCodes("int-quantized", bits, size, symmetric)
    if form in ("float-quantized", "naive-quantized") and (kind, bits) == ("float", 8):
        rows, columns = {"channel": (1, WHOLE), "tensor": (WHOLE, WHOLE)}.get(strategy, (0, 0))
        if strategy == "block":
            rows, columns = _block(weights, "block_structure")
        if rows and symmetric:
            return Float8Blocks(rows, columns, ("{name}_scale",))
    if form == "nvfp4-pack-quantized" and (kind, bits, size, symmetric) == ("float", 4, 16, True):
        return GroupCodes("nvfp4-pack-quantized", 4, 16)
    if form == "mxfp4-pack-quantized" and (kind, bits, size, symmetric) == ("float", 4, 32, True):
        return GroupCodes("mxfp4-pack-quantized", 4, 32)
    raise whole.unsupported(
        f"{what} with {shown(kind)} of {shown(bits)} bits, a scale for each {shown(strategy)}"
    )


def _modelopt(section: _Section) -> Quantization:
    algorithm = section.get("quant_algo")
    if algorithm == "FP8":
        return Quantization(Float8Blocks(WHOLE, WHOLE, ("{name}_scale",)))
    if algorithm == "NVFP4":
        return Quantization(codes=(GroupCodes("modelopt-nvfp4", 4, 16),))
    raise section.unsupported(f"method 'modelopt' with algorithm {shown(algorithm)}")
