"""One rank's part of a model, where several compute it together: made from the spec alone.

Products that widen are divided by rows and those that narrow again by columns, so that between them
nothing is exchanged, and every block ends in one sum over the ranks (Shoeybi et al. 2019,
arXiv:1909.08053, section 3). Attention is divided by heads, feed-forward networks by their width,
a mixture of experts by whole experts, embedding and head by rows of the vocabulary. All ranks have
the rest: norms, routers, the latent of latent attention, indexers and compressors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from firstlight.errors import DeviceError, FormatError
from firstlight.model.attention_spec import AttentionSpec, GroupedQuerySpec, LatentAttentionSpec
from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.feed_forward_spec import (
    ExpertSpec,
    ExpertsSpec,
    FeedForwardSpec,
    GatedFeedForwardSpec,
)
from firstlight.model.part_specs import HeadLinearSpec, LinearSpec
from firstlight.model.spec import LayerSpec, ModelPart, ModelSpec
from firstlight.model.tensor_source import TensorSource

UnitOf = Callable[[TensorSource], int]
"""Columns of a matrix from one place where it can be divided to the next."""


def part_of_model(
    spec: ModelSpec, rank: int, ranks: int, unit_of: UnitOf, subject: object
) -> ModelSpec:
    """The spec of what one of several ranks computes.

    Widths, experts and vocabularies that the ranks do not divide evenly are divided as evenly as
    can be; the last rank never has less than another. Attention whose queries or keys are normed
    over all heads together is computed whole on every rank.

    Args:
        spec: of a whole model without predictor.
        subject: what an error is about: the devices.

    Raises:
        DeviceError: heads, experts or widths cannot be shared by so many ranks.
        FormatError: a matrix would have to be divided within blocks.
    """
    assert spec.part is None and spec.predictor is None
    problem = _problem(spec, ranks)
    if problem is not None:
        fitting = [str(count) for count in range(2, ranks) if _problem(spec, count) is None]
        choice = f"{' or '.join(fitting)} devices, or one" if fitting else "one device"
        raise DeviceError(subject, f"{ranks} ranks cannot share {problem}", f"Use {choice}")
    vocabulary = _bounds(spec.vocabulary_size, ranks)
    first, stop = vocabulary[rank : rank + 2]
    cut = _Cut(rank, ranks, unit_of, subject)
    return replace(
        spec,
        embedding=_rows(spec.embedding, first, stop),
        head=_linear_rows(spec.head, first, stop),
        layers=tuple(cut.layer(layer) for layer in spec.layers),
        part=ModelPart(rank, ranks, vocabulary),
    )


def _problem(spec: ModelSpec, ranks: int) -> str | None:
    """What of the model so many ranks cannot share; None: they can."""
    if spec.vocabulary_size < ranks:
        return f"a vocabulary of {spec.vocabulary_size}"
    for layer in spec.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        if _by_heads(attention) and attention.heads % ranks:
            return f"{attention.heads} attention heads evenly"
        if isinstance(attention, GroupedQuerySpec) and _by_heads(attention):
            count = attention.key_value_heads
            if count % ranks and ranks % count:
                return f"{count} heads of keys and values evenly"
        if isinstance(attention, CompressedAttentionSpec) and attention.groups % ranks:
            return f"{attention.groups} groups of attention heads evenly"
        if isinstance(feed_forward, ExpertsSpec) and len(feed_forward.experts) < ranks:
            return f"{len(feed_forward.experts)} experts"
    return None


def _by_heads(attention: AttentionSpec) -> bool:
    """Whether heads are computed each by itself."""
    if not isinstance(attention, GroupedQuerySpec):
        return True
    norms = (attention.query_norm, attention.key_norm)
    return all(norm is None or norm.size == attention.head_size for norm in norms)


class _Cut:
    """What one rank has of each part."""

    def __init__(self, rank: int, ranks: int, unit_of: UnitOf, subject: object) -> None:
        self._rank = rank
        self._ranks = ranks
        self._unit_of = unit_of
        self._subject = subject

    def layer(self, layer: LayerSpec) -> LayerSpec:
        attention, whole = layer.attention, not _by_heads(layer.attention)
        return replace(
            layer,
            attention=attention if whole else self._attention(attention),
            attention_residual=replace(layer.attention_residual, partial=not whole),
            feed_forward=self._feed_forward(layer.feed_forward),
            feed_forward_residual=replace(layer.feed_forward_residual, partial=True),
        )

    # Attention ---------------------------------------------------------------------------------

    def _attention(self, spec: AttentionSpec) -> AttentionSpec:
        if isinstance(spec, GroupedQuerySpec):
            return self._grouped_query(spec)
        if isinstance(spec, LatentAttentionSpec):
            return self._latent(spec)
        return self._compressed(spec)

    def _grouped_query(self, spec: GroupedQuerySpec) -> GroupedQuerySpec:
        """With fewer heads of keys and values than ranks, several ranks have the same one."""
        size, heads = spec.head_size, spec.heads // self._ranks
        kept = max(1, spec.key_value_heads // self._ranks)
        first = self._rank * spec.key_value_heads // self._ranks
        return replace(
            spec,
            heads=heads,
            key_value_heads=kept,
            query=self._share(spec.query, spec.heads * size),
            key=_linear_rows(spec.key, first * size, (first + kept) * size),
            value=_linear_rows(spec.value, first * size, (first + kept) * size),
            output=self._narrowing(spec.output, spec.heads * size),
            sinks=None if spec.sinks is None else _rows(spec.sinks, *self._even(spec.heads)),
        )

    def _latent(self, spec: LatentAttentionSpec) -> LatentAttentionSpec:
        def mine(part: HeadLinearSpec) -> HeadLinearSpec:
            return replace(part, weight=_rows(part.weight, *self._even(part.weight.shape[0])))

        return replace(
            spec,
            heads=spec.heads // self._ranks,
            query=self._share(spec.query, spec.query.weight.shape[0]),
            key_up=mine(spec.key_up),
            value_up=mine(spec.value_up),
            output=self._narrowing(spec.output, spec.heads * spec.value_size),
        )

    def _compressed(self, spec: CompressedAttentionSpec) -> CompressedAttentionSpec:
        rows = spec.output_down.shape[0]
        return replace(
            spec,
            heads=spec.heads // self._ranks,
            groups=spec.groups // self._ranks,
            query=self._share(spec.query, spec.heads * spec.head_size),
            output_down=_rows(spec.output_down, *self._even(rows)),
            output=self._narrowing(spec.output, rows),
            sinks=_rows(spec.sinks, *self._even(spec.heads)),
        )

    def _even(self, count: int) -> tuple[int, int]:
        """This rank's part of what the ranks divide evenly."""
        each = count // self._ranks
        return self._rank * each, (self._rank + 1) * each

    def _share(self, linear: LinearSpec, rows: int) -> LinearSpec:
        return _linear_rows(linear, *self._even(rows))

    def _narrowing(self, linear: LinearSpec, columns: int) -> LinearSpec:
        """Even columns of a product whose results are summed over the ranks."""
        unit = self._unit_of(linear.weight)
        if (columns // self._ranks) % unit:
            raise FormatError(
                linear.weight.name,
                f"has blocks of {unit} columns, which {self._ranks} ranks would divide",
                "Use fewer devices, or convert with --weights bf16",
            )
        return self._columns(linear, *self._even(columns))

    def _columns(self, linear: LinearSpec, first: int, stop: int) -> LinearSpec:
        """Columns of a product whose results are summed: one rank alone adds the bias."""
        weight = linear.weight
        part = replace(
            weight,
            shape=(*weight.shape[:-1], stop - first),
            first_column=first,
            all_columns=weight.shape[-1],
        )
        return LinearSpec(part, linear.bias if self._rank == 0 else None)

    # Feed-forward networks -----------------------------------------------------------------------

    def _feed_forward(self, spec: FeedForwardSpec) -> FeedForwardSpec:
        if isinstance(spec, GatedFeedForwardSpec):
            gate, up, down = self._gated(spec.gate, spec.up, spec.down)
            return replace(spec, gate=gate, up=up, down=down)
        bounds = _bounds(len(spec.experts), self._ranks)
        first, stop = bounds[self._rank : self._rank + 2]
        shared = spec.shared
        if shared is not None:
            shared = ExpertSpec(*self._gated(shared.gate, shared.up, shared.down))
        return replace(spec, experts=spec.experts[first:stop], shared=shared, first=first)

    def _gated(
        self, gate: LinearSpec, up: LinearSpec, down: LinearSpec
    ) -> tuple[LinearSpec, LinearSpec, LinearSpec]:
        width, unit = down.weight.shape[-1], self._unit_of(down.weight)
        bounds = _bounds(width, self._ranks, unit)
        if any(first == stop for first, stop in pairwise(bounds)):
            raise DeviceError(
                self._subject,
                f"{self._ranks} ranks cannot share {down.weight.name!r} with {width} columns in "
                f"blocks of {unit}",
                "Use fewer devices" + ("" if unit == 1 else ", or convert with --weights bf16"),
            )
        first, stop = bounds[self._rank : self._rank + 2]
        return (
            _linear_rows(gate, first, stop),
            _linear_rows(up, first, stop),
            self._columns(down, first, stop),
        )


def _bounds(count: int, ranks: int, unit: int = 1) -> tuple[int, ...]:
    """Where the parts begin of what is divided as evenly as can be at multiples of a unit, and the
    end."""
    units = -(-count // unit)
    return tuple(min(count, rank * units // ranks * unit) for rank in range(ranks + 1))


def _rows(source: TensorSource, first: int, stop: int) -> TensorSource:
    """Rows first:stop of a matrix or a vector."""
    return replace(
        source,
        shape=(stop - first, *source.shape[1:]),
        first_row=(source.first_row or 0) + first * source.row_step,
        fused_rows=source.fused_rows or source.shape[0],
    )


def _linear_rows(linear: LinearSpec, first: int, stop: int) -> LinearSpec:
    bias = None if linear.bias is None else _rows(linear.bias, first, stop)
    return LinearSpec(_rows(linear.weight, first, stop), bias)
