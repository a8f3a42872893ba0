"""Which tensors make up a matrix of quantised codes, known from headers alone.

Of a module X with `rows` outputs and `columns` inputs, `n` codes in a word of 32 bits:

| layout | codes | scales | zeros | others |
| --- | --- | --- | --- | --- |
| gptq | X.qweight i32 [columns / n, rows] | X.scales [groups, rows] | X.qzeros i32 [groups, rows / n] | X.g_idx |
| awq | X.qweight i32 [columns, rows / 8] | X.scales [groups, rows] | X.qzeros i32 [groups, rows / 8] | |
| pack-quantized | X.weight_packed i32 [rows, columns / n] | X.weight_scale [rows, groups] | X.weight_zero_point i32 [rows / n, groups] | X.weight_shape, X.weight_g_idx |
| int-quantized | X.weight i8 [rows, columns] | X.weight_scale [rows, groups] | X.weight_zero_point i8 [rows, groups] | |
| nvfp4-pack-quantized | X.weight_packed u8 [rows, columns / 2] | X.weight_scale f8_e4m3 [rows, columns / 16] | | X.weight_global_scale |
| mxfp4-pack-quantized | X.weight_packed u8 [rows, columns / 2] | X.weight_scale u8 [rows, columns / 32] | | |
| modelopt-nvfp4 | X.weight u8 [rows, columns / 2] | X.weight_scale f8_e4m3 [rows, columns / 16] | | X.weight_scale_2 |

Sources: AutoGPTQ's and GPTQModel's `pack`, AutoAWQ's `gemm_pack`, the compressors of the package
compressed-tensors, ModelOpt's NVFP4QTensor. A module that a method leaves out (`ignore`,
`modules_to_not_convert`) has an ordinary X.weight, and none of these tensors.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.quantization import FETCH, MATCHING, GroupCodes
from firstlight.checkpoint.tensor_info import TensorInfo
from firstlight.errors import CheckpointError, UnsupportedModelError

_CODES = {
    "gptq": ".qweight",
    "awq": ".qweight",
    "pack-quantized": ".weight_packed",
    "int-quantized": ".weight",
    "nvfp4-pack-quantized": ".weight_packed",
    "mxfp4-pack-quantized": ".weight_packed",
    "modelopt-nvfp4": ".weight",
}
_CODE_FORMAT = {"i": "i32", "f": "u8"}
_FLOATS = ("f16", "bf16", "f32")
# Of activations; what is computed here rounds none of them by a stored scale.
_UNUSED = (".input_scale", ".input_global_scale", ".input_zero_point", ".output_scale")


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix of codes, and the tensors that it is made of.

    Attributes:
        info: the matrix under the name X.weight, in its own shape; `nbytes` is that of all parts.
        kind: as the config declares it, with `group` and `symmetric` as the tensors have it.
        codes, scales, zeros, groups, factor, stated_shape: headers of the parts; None: there is
            none.
    """

    info: TensorInfo
    kind: GroupCodes
    codes: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None = None
    groups: TensorInfo | None = None
    factor: TensorInfo | None = None
    stated_shape: TensorInfo | None = None

    @property
    def group(self) -> int:
        """Columns of a group."""
        return self.kind.group or self.info.shape[1]

    def parts(self) -> tuple[TensorInfo, ...]:
        found = (self.codes, self.scales, self.zeros, self.groups, self.factor, self.stated_shape)
        return tuple(part for part in found if part is not None)


def quantized_tensors(
    tensors: Mapping[str, TensorInfo], kinds: tuple[GroupCodes, ...]
) -> dict[str, QuantizedTensor]:
    """Every quantised matrix of a checkpoint, by the name X.weight.

    Raises:
        CheckpointError: a part is missing, or has a shape or type that contradicts the others.
        UnsupportedModelError: a matrix is none that this project reads.
    """
    found = {}
    suffixes = dict.fromkeys(_CODES[kind.layout] for kind in kinds)
    for name, info in tensors.items():
        for suffix in suffixes:
            if name.endswith(suffix) and _holds_codes(info, suffix):
                module = name.removesuffix(suffix)
                found[f"{module}.weight"] = _chosen(_Module(module, tensors, info), kinds)
    return found


def logical_tensors(
    stored: Mapping[str, TensorInfo], quantized: Mapping[str, QuantizedTensor]
) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint as a model knows them: matrices in place of their parts."""
    parts = {part.name: tensor for tensor in quantized.values() for part in tensor.parts()}
    modules = {name.removesuffix(".weight") for name in quantized}
    found = {}
    for name, info in stored.items():
        tensor = parts.get(name)
        if tensor is None:
            module, dot, last = name.rpartition(".")
            if dot + last in _UNUSED and module in modules:
                continue
            found[name] = info
        elif name == tensor.codes.name:
            found[tensor.info.name] = tensor.info
    return found


def _holds_codes(info: TensorInfo, suffix: str) -> bool:
    """Whether it is a matrix of codes, even if what belongs to it is missing."""
    return suffix != ".weight" or (info.format in ("i8", "u8") and len(info.shape) > 1)


@dataclass(frozen=True)
class _Module:
    """One module's tensors."""

    name: str
    tensors: Mapping[str, TensorInfo]
    codes: TensorInfo

    def optional(self, suffix: str) -> TensorInfo | None:
        return self.tensors.get(self.name + suffix)

    def part(self, suffix: str) -> TensorInfo:
        info = self.optional(suffix)
        if info is None:
            raise CheckpointError(
                self.codes.file,
                f"tensor {shown(self.codes.name)} holds quantised codes, and "
                f"{shown(self.name + suffix)}, which belongs to it, is missing",
                FETCH,
            )
        return info


def _chosen(module: _Module, kinds: tuple[GroupCodes, ...]) -> QuantizedTensor:
    """The matrix as the one declared kind that its tensors agree with."""
    found: list[QuantizedTensor] = []
    problem: Exception | None = None
    for kind in kinds:
        if not module.codes.name.endswith(_CODES[kind.layout]):
            continue
        try:
            tensor = _read(module, kind)
        except (CheckpointError, UnsupportedModelError) as error:
            problem = error
            continue
        if tensor not in found:
            found.append(tensor)
    # One kind may leave out a part that another has, as zeros: whoever wrote that part meant it.
    most = max((len(tensor.parts()) for tensor in found), default=0)
    found = [tensor for tensor in found if len(tensor.parts()) == most]
    if len(found) == 1:
        return found[0]
    if not found and problem is not None:
        raise problem
    raise UnsupportedModelError(
        module.codes.file,
        f"tensor {shown(module.codes.name)} could be of several kinds that the config declares",
        "Use a checkpoint whose matrices are quantised in one way",
    )


def _read(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    read = {"gptq": _gptq, "awq": _awq, "pack-quantized": _packed, "int-quantized": _bytes}
    tensor = read.get(kind.layout, _float4)(module, kind)
    for part, expected, formats in _expected(tensor):
        _check(part, expected, formats, tensor.info)
    return tensor


def _matrix(
    module: _Module, kind: GroupCodes, rows: int, columns: int, **parts: TensorInfo | None
) -> QuantizedTensor:
    codes = module.codes
    given = [part for part in (codes, *parts.values()) if part is not None]
    info = TensorInfo(
        f"{module.name}.weight",
        kind.name,
        (rows, columns),
        sum(part.nbytes for part in given),
        codes.file,
        codes.offset,
    )
    scales = parts.pop("scales")
    assert scales is not None
    return QuantizedTensor(info, kind, codes, scales, **parts)


def _two_axes(info: TensorInfo) -> tuple[int, int]:
    if len(info.shape) != 2 or not all(info.shape):
        raise UnsupportedModelError(
            info.file,
            f"tensor {shown(info.name)} of quantised codes has shape {list(info.shape)}, and "
            "firstlight reads matrices",
            "Use the model as it was published before it was quantised, or a GGUF file of it",
        )
    return info.shape[0], info.shape[1]


def _gptq(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    words, rows = _two_axes(module.codes)
    return _matrix(
        module,
        kind,
        rows,
        words * (32 // kind.bits),
        scales=module.part(".scales"),
        zeros=module.part(".qzeros"),
        groups=module.optional(".g_idx"),
    )


def _awq(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    columns, words = _two_axes(module.codes)
    return _matrix(
        module,
        kind,
        words * (32 // kind.bits),
        columns,
        scales=module.part(".scales"),
        zeros=module.part(".qzeros"),
    )


def _packed(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    rows, words = _two_axes(module.codes)
    zeros = None if kind.symmetric else module.part(".weight_zero_point")
    return _matrix(
        module,
        kind,
        rows,
        words * (32 // kind.bits),
        scales=module.part(".weight_scale"),
        zeros=zeros,
        groups=module.optional(".weight_g_idx"),
        stated_shape=module.optional(".weight_shape"),
    )


def _bytes(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    rows, columns = _two_axes(module.codes)
    zeros = None if kind.symmetric else module.part(".weight_zero_point")
    return _matrix(module, kind, rows, columns, scales=module.part(".weight_scale"), zeros=zeros)


def _float4(module: _Module, kind: GroupCodes) -> QuantizedTensor:
    rows, pairs = _two_axes(module.codes)
    factors = {
        "nvfp4-pack-quantized": ".weight_global_scale",
        "modelopt-nvfp4": ".weight_scale_2",
    }
    factor = None if kind.layout not in factors else module.part(factors[kind.layout])
    return _matrix(
        module, kind, rows, 2 * pairs, scales=module.part(".weight_scale"), factor=factor
    )


_Expected = tuple[TensorInfo, tuple[tuple[int, ...], ...], tuple[str, ...]]


def _expected(tensor: QuantizedTensor) -> Iterator[_Expected]:
    """Each part with the shapes and the formats that it may have."""
    rows, columns = tensor.info.shape
    kind, groups = tensor.kind, -(-columns // tensor.group)
    across = 32 // kind.bits
    words = -(-rows // across)
    layout = kind.layout
    if layout in ("gptq", "awq"):
        yield tensor.codes, (tensor.codes.shape,), ("i32",)
        yield tensor.scales, ((groups, rows),), _FLOATS
        assert tensor.zeros is not None
        yield tensor.zeros, ((groups, words),), ("i32",)
    elif layout in ("pack-quantized", "int-quantized"):
        packed = layout == "pack-quantized"
        yield tensor.codes, (tensor.codes.shape,), ("i32" if packed else "i8",)
        one = ((rows,), (1,), (1, 1), ()) if kind.group is None else ()
        yield tensor.scales, ((rows, groups), *one), _FLOATS
        if tensor.zeros is not None:
            is_packed = tensor.zeros.format == "i32"
            shape = (words if is_packed else rows, groups)
            yield tensor.zeros, (shape, *(() if is_packed else one)), ("i32", "i8")
        if tensor.stated_shape is not None:
            yield tensor.stated_shape, ((2,),), ("i64", "i32")
    else:
        yield tensor.codes, (tensor.codes.shape,), ("u8",)
        scale = ("u8", "f8_e8m0") if layout == "mxfp4-pack-quantized" else ("f8_e4m3",)
        yield tensor.scales, ((rows, groups),), scale
        if tensor.factor is not None:
            yield tensor.factor, ((), (1,)), ("f32",)
    if tensor.groups is not None:
        yield tensor.groups, ((columns,),), ("i32", "i64")


def _check(
    part: TensorInfo,
    shapes: tuple[tuple[int, ...], ...],
    formats: tuple[str, ...],
    matrix: TensorInfo,
) -> None:
    if part.format not in formats:
        raise CheckpointError(
            part.file,
            f"tensor {shown(part.name)} is stored as {shown(part.format)}, not as one of "
            f"{', '.join(formats)}",
            FETCH,
        )
    if part.shape not in shapes:
        raise CheckpointError(
            part.file,
            f"tensor {shown(part.name)} has shape {list(part.shape)}, and quantised matrix "
            f"{shown(matrix.name)} of shape {list(matrix.shape)} needs {list(shapes[0])}",
            MATCHING,
        )
