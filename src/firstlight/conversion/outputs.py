"""Which tensors a converted checkpoint has, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.safetensors import BITS
from firstlight.conversion.schemes import Plain, Scheme, Target
from firstlight.conversion.shard_file import TensorEntry
from firstlight.conversion.stacked import StackedOutput
from firstlight.errors import UnsupportedModelError
from firstlight.formats.plain import BF16, F32
from firstlight.formats.registry import get_format
from firstlight.model.attention_spec import GroupedQuerySpec
from firstlight.model.families.registry import published_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource

_PLAIN = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Output:
    """A tensor of the model as it is written.

    Attributes:
        name: of the tensor, with its last ".weight" or ".bias".
        shape: of the values.
        source: where its rows come from; None: the checkpoint's tensor of that name is copied,
            bytes and type.
        scheme: how it is written, where it is not copied.
        layer: number of the layer it belongs to; None: to none.
        offset: added to its values.
        head: its rows are those of heads with so many each, whose neighbours turn together; they
            are written with the first half's values first. None: rows stay in order.
    """

    name: str
    shape: tuple[int, ...]
    source: TensorSource | None = None
    scheme: Scheme | None = None
    layer: int | None = None
    offset: float = 0.0
    head: int | None = None

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    def read_bytes(self, checkpoint: Checkpoint) -> int:
        """Of the checkpoint."""
        if self.source is None:
            return checkpoint.tensors[self.name].nbytes
        stack = self.source.stack
        parts = 1 if stack is None else stack.count
        return checkpoint.tensors[self.source.name].nbytes // parts

    def entries(self, checkpoint: Checkpoint) -> tuple[TensorEntry, ...]:
        """The tensors that it becomes in the file."""
        if self.scheme is None:
            info = checkpoint.tensors[self.name]
            return (TensorEntry(self.name, info.format.upper(), info.shape),)
        if isinstance(self.scheme, Plain):
            return (TensorEntry(self.name, self.scheme.format.name.upper(), self.shape),)
        rows, columns = self.shape
        return tuple(
            TensorEntry(f"{self.module}.{part.suffix}", part.dtype, part.shape)
            for part in self.scheme.parts(rows, columns)
        )


AnyOutput = Output | StackedOutput


def outputs_of(checkpoint: Checkpoint, spec: ModelSpec, target: Target) -> tuple[AnyOutput, ...]:
    """Every tensor of the converted checkpoint, in the order of use; what the model does not use
    (a layer for drafts, another model's part) comes last and stays as it is.

    Raises:
        UnsupportedModelError: the model's tensors have no published layout that could be written.
    """
    published = published_spec(checkpoint, spec, apart=not isinstance(target.scheme, Plain))
    merged: dict[str, list[tuple[TensorSource, TensorSource]]] = {}
    for pair in zip(spec.sources(), published.sources(), strict=True):
        merged.setdefault(pair[1].name, []).append(pair)
    experts, layers = _experts(spec), _layers(spec)
    heads = _reordered(spec, published)
    found: list[AnyOutput] = []
    for name, parts in merged.items():
        first, named = parts[0]
        layer = layers.get(first)
        if first.integers or (len(first.shape) == 1 and _is_plain(name, checkpoint)):
            found.append(Output(name, checkpoint.tensors[name].shape, layer=layer))
            continue
        if named.stack is not None and isinstance(target.scheme, Plain):
            found.append(_stacked(parts, target.scheme, layer))
            continue
        source = _whole(parts, checkpoint)
        scheme = _scheme(first, checkpoint, target, spec, first in experts)
        if len(source.shape) == 2 and not scheme.takes(*source.shape):
            scheme = _kept_scheme(first, checkpoint)
        offset = source.offset - named.offset
        head = heads.get(first)
        found.append(Output(name, source.shape, source, scheme, layer, offset, head))
    used = {source.name for source in spec.sources()} | {
        source.scales for source in spec.sources() if source.scales is not None
    }
    return (*found, *_unused(checkpoint, used))


def left_out(outputs: Iterable[AnyOutput], target: Target) -> list[str]:
    """Modules whose matrices are not written as the target says."""
    schemes = (target.scheme, target.experts)
    return [
        output.module
        for output in outputs
        if len(output.shape) == 2 and output.scheme not in schemes
    ]


def _is_plain(name: str, checkpoint: Checkpoint) -> bool:
    info = checkpoint.tensors.get(name)
    return checkpoint.kind == "safetensors" and info is not None and info.format in _PLAIN


def _reordered(spec: ModelSpec, published: ModelSpec) -> Mapping[TensorSource, int]:
    """Tensors of queries and keys whose rows lie in another order than they are published in."""
    found: dict[TensorSource, int] = {}
    for ours, theirs in zip(spec.layers, published.layers, strict=True):
        one, other = ours.attention, theirs.attention
        if not isinstance(one, GroupedQuerySpec) or not isinstance(other, GroupedQuerySpec):
            continue
        # Layers that turn nothing have their rows in the order of all others.
        rope = one.rope or next(iter(spec.ropes()), None)
        if rope is None or not rope.interleaved or (other.rope or rope) == one.rope:
            continue
        for linear in (one.query, one.key):
            found |= {each: one.head_size for each in (linear.weight, linear.bias) if each}
    return found


def _stacked(
    parts: list[tuple[TensorSource, TensorSource]], scheme: Plain, layer: int | None
) -> StackedOutput:
    """A published tensor of stacked matrices, of all its parts."""
    named = parts[0][1]
    assert named.stack is not None
    members: dict[int, dict[int, TensorSource]] = {}
    for source, name in parts:
        assert name.stack is not None
        members.setdefault(name.stack.index, {})[name.first_row or 0] = source
    inner = tuple(
        tuple(each[first] for first in sorted(each)) for _, each in sorted(members.items())
    )
    transposed = named.stack.transposed
    return StackedOutput(named.name, named.stored_shape, inner, transposed, scheme, layer)


def _whole(parts: list[tuple[TensorSource, TensorSource]], checkpoint: Checkpoint) -> TensorSource:
    """All rows of one published tensor, as they lie in the files.

    Args:
        parts: (where it is, how it is published) of each of its parts.
    """
    source, named = parts[0]
    refused = UnsupportedModelError(
        checkpoint.location,
        f"tensor {named.name!r} stacks or mixes matrices, and is published in no other way that "
        "could be written",
        "Use it as it is; `--weights` converts it while it is loaded",
    )
    if any(name.stack is not None or name.row_step != 1 for _, name in parts):
        raise refused
    if len(parts) == 1 and named.first_row is None:
        return source
    rows = sum(each.shape[0] for each, _ in parts)
    names = {each.name for each, _ in parts}
    if len(names) > 1 or rows != named.fused_rows or rows != source.fused_rows:
        raise refused
    return replace(source, shape=(rows, *source.shape[1:]), first_row=None, fused_rows=None)


def _scheme(
    source: TensorSource, checkpoint: Checkpoint, target: Target, spec: ModelSpec, expert: bool
) -> Scheme:
    if len(source.shape) == 1 or source.kept is not None:
        return _kept_scheme(source, checkpoint)
    if source == spec.embedding:
        return target.scheme if target.embedding else _kept_scheme(source, checkpoint)
    if source == spec.head.weight and not target.head:
        return _kept_scheme(source, checkpoint)
    return target.experts if expert else target.scheme


def _kept_scheme(source: TensorSource, checkpoint: Checkpoint) -> Scheme:
    """For what is not converted: its own type where readers of safetensors know that."""
    format = checkpoint.tensors[source.name].format if source.scales is None else ""
    if format in _PLAIN:
        return Plain(format, get_format(format))
    wide = len(source.shape) == 1 or source.kept is not None
    return Plain("f32", F32) if wide else Plain("bf16", BF16)


def _experts(spec: ModelSpec) -> set[TensorSource]:
    return {
        product.weight
        for layer in spec.layers
        if isinstance(layer.feed_forward, ExpertsSpec)
        for expert in layer.feed_forward.experts
        for product in (expert.gate, expert.up, expert.down)
    }


def _layers(spec: ModelSpec) -> Mapping[TensorSource, int]:
    found: dict[TensorSource, int] = {}
    for index, layer in enumerate(spec.layers):
        alone = replace(spec, layers=(layer,))
        outside = {spec.embedding, spec.head.weight, spec.final_norm.weight, spec.head.bias}
        for source in alone.sources():
            if source not in outside:
                found.setdefault(source, index)
    return found


def _unused(checkpoint: Checkpoint, used: set[str]) -> Iterable[Output]:
    """What the model does not use: copied where it is plain, else as bfloat16."""
    if checkpoint.kind != "safetensors":
        return
    scales = {
        pattern.format(name=name, stem=name.removesuffix("weight"))
        for name, info in checkpoint.tensors.items()
        if info.format == "f8_e4m3"
        for pattern in ("{name}_scale_inv", "{name}_scale", "{stem}scale", "{stem}input_scale")
    }
    for name, info in checkpoint.tensors.items():
        if name in used or name in scales:
            continue
        if info.format.upper() in BITS and info.format not in ("f8_e4m3", "f8_e5m2"):
            yield Output(name, info.shape)
            continue
        shape = (prod(info.shape[:-1]), info.shape[-1])
        yield Output(name, shape, TensorSource(name, shape), Plain("bf16", BF16))
