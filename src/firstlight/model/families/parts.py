"""The parts that families put their specs together from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from firstlight.model.attention_spec import AttentionSpec, GroupedQuerySpec
from firstlight.model.families.config import Config, shown
from firstlight.model.families.names import GGUF, HUGGING_FACE
from firstlight.model.feed_forward_spec import FeedForwardSpec, GatedFeedForwardSpec
from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.rope_spec import (
    DynamicScaling,
    LinearScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from firstlight.model.spec import LayerSpec, ModelSpec, ResidualSpec
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.tensor_source import TensorSource
from firstlight.ops.elementwise import Activation

MOST_LAYERS = 4096
_MOST_HEADS = 1 << 16

# The names that configs give to activations -> ours.
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Parts:
    """A checkpoint's config and files, and the sizes that every family reads from them.

    `config` is in Hugging Face's vocabulary whatever the files' layout (see `gguf.py`).

    Attributes:
        gguf: the tensors are named and laid out as in GGUF files.
        renamed: role -> tensor name where a family departs from the layout's common names.
        norm_offset: added to norm weights on loading.
        apart: where the files have no experts yet, they are named one by one.
    """

    config: Config
    files: TensorFiles
    gguf: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    apart: bool = False

    def with_defaults(self, **defaults: Any) -> Parts:
        """The same where keys that the config lacks take a family's published defaults.

        Sizes that decide the tensors' shapes belong here only where published checkpoints leave
        them out; elsewhere a config without them is damaged.
        """
        return replace(self, config=self.config.with_defaults(defaults))

    # Sizes -------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        return self.config.integer("hidden_size")

    @property
    def layers(self) -> int:
        return self.config.integer("num_hidden_layers", most=MOST_LAYERS)

    @property
    def heads(self) -> int:
        return self.config.integer("num_attention_heads", most=_MOST_HEADS)

    @property
    def key_value_heads(self) -> int:
        found = self.config.integer("num_key_value_heads", self.heads, most=_MOST_HEADS)
        if self.heads % found:
            raise self.config.error(
                "num_key_value_heads", f"is {found}, which does not divide {self.heads} heads"
            )
        return found

    @property
    def head_size(self) -> int:
        if not self.config.has("head_dim") and self.hidden_size % self.heads:
            raise self.config.error(
                "hidden_size", f"is {self.hidden_size}, not a multiple of {self.heads} heads"
            )
        return self.config.integer("head_dim", self.hidden_size // self.heads, most=_MOST_HEADS)

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def key_value_width(self) -> int:
        return self.key_value_heads * self.head_size

    def activation(self, key: str = "hidden_act", default: str = "silu") -> Activation:
        """The activation that the config names."""
        name = self.config.text(key, default)
        if name not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise self.config.unsupported(key, f"is {shown(name)}, not one of {known}")
        return _ACTIVATIONS[name]

    def windows(
        self, slides: Callable[[int], bool], key: str = "sliding_window"
    ) -> tuple[int | None, ...]:
        """For each layer its attention window, None where it sees all.

        Args:
            slides: whether a layer has a window, where the config's `layer_types` is silent.
            key: of the window.
        """
        sliding = tuple(slides(layer) for layer in range(self.layers))
        if self.config.has("layer_types"):
            names = self.config.texts("layer_types", self.layers)
            for name in names:
                if name not in ("full_attention", "sliding_attention"):
                    raise self.config.unsupported("layer_types", f"has the type {shown(name)}")
            sliding = tuple(name == "sliding_attention" for name in names)
        return tuple(self.config.integer(key) if slide else None for slide in sliding)

    def rename(self, **last: str) -> Parts:
        """The same where some roles' tensors have another last component of their name."""
        stems = {role: self._pattern(role).rpartition(".")[0] for role in last}
        renamed = {role: f"{stem}.{last[role]}" for role, stem in stems.items()}
        return replace(self, renamed={**self.renamed, **renamed})

    def rename_whole(self, **patterns: str) -> Parts:
        """The same where some roles' tensors have other names altogether."""
        return replace(self, renamed={**self.renamed, **patterns})

    def with_values(self, **values: Any) -> Parts:
        """The same where keys have these values, whatever the config says."""
        return replace(self, config=self.config.with_values(values))

    def with_alias(self, key: str, other: str) -> Parts:
        """The same where a key that is absent is read under another name."""
        if self.config.has(key) or not self.config.has(other):
            return self
        return self.with_values(**{key: self.config.values[other]})

    def with_scaling(self, **defaults: Any) -> Parts:
        """The same where keys that the rotary embedding's scaling lacks have these values."""
        scaling = self.config.section("rope_scaling")
        if scaling is None:
            return self
        return self.with_values(rope_scaling={**defaults, **scaling.values})

    # Tensors -----------------------------------------------------------------------------

    def tensor_name(self, role: str, layer: int | None = None, expert: int | None = None) -> str:
        """The checkpoint's name of a role, without ".weight" or ".bias"."""
        return self._pattern(role).format(layer=layer, expert=expert)

    def _pattern(self, role: str) -> str:
        return self.renamed.get(role) or (GGUF if self.gguf else HUGGING_FACE)[role]

    def has(self, role: str, layer: int | None = None, part: str = "weight") -> bool:
        """Whether the checkpoint has the tensor."""
        return f"{self.tensor_name(role, layer)}.{part}" in self.files.tensors

    def matrix(self, role: str, rows: int, columns: int, layer: int | None = None) -> TensorSource:
        return TensorSource(f"{self.tensor_name(role, layer)}.weight", (rows, columns))

    def linear(
        self,
        role: str,
        rows: int,
        columns: int,
        layer: int | None = None,
        *,
        bias: bool = False,
        first_row: int | None = None,
        fused_rows: int | None = None,
    ) -> LinearSpec:
        """A product; with `first_row`, a part of the rows of a tensor of `fused_rows`.

        GGUF files say of a bias only by having it, so there `bias` is not asked.
        """
        name = self.tensor_name(role, layer)
        weight = TensorSource(f"{name}.weight", (rows, columns), first_row, fused_rows)
        if not (self.has(role, layer, "bias") if self.gguf else bias):
            return LinearSpec(weight)
        return LinearSpec(weight, TensorSource(f"{name}.bias", (rows,), first_row, fused_rows))

    def norm(self, role: str, size: int, layer: int | None = None) -> NormSpec:
        source = TensorSource(
            f"{self.tensor_name(role, layer)}.weight", (size,), offset=self.norm_offset
        )
        return NormSpec(size, self.config.positive("rms_norm_eps", 1e-6), source)

    # Blocks, as in Llama; families change what differs --------------------------------------

    def attention(
        self,
        layer: int,
        rope: RopeSpec | None,
        *,
        bias: bool = False,
        output_bias: bool = False,
        **changes: Any,
    ) -> GroupedQuerySpec:
        """Grouped-query attention with separate projections; `bias` is for query, key, value."""
        hidden = self.hidden_size
        spec = GroupedQuerySpec(
            heads=self.heads,
            key_value_heads=self.key_value_heads,
            head_size=self.head_size,
            query=self.linear("query", self.query_width, hidden, layer, bias=bias),
            key=self.linear("key", self.key_value_width, hidden, layer, bias=bias),
            value=self.linear("value", self.key_value_width, hidden, layer, bias=bias),
            output=self.linear(
                "attention_output", hidden, self.query_width, layer, bias=output_bias
            ),
            scale=self.head_size**-0.5,
            rope=rope,
        )
        return replace(spec, **changes)

    def feed_forward(
        self, layer: int, *, bias: bool = False, activation: Activation | None = None
    ) -> GatedFeedForwardSpec:
        """The gated network with separate gate and up; the activation is the config's."""
        hidden, width = self.hidden_size, self.config.integer("intermediate_size")
        spec = GatedFeedForwardSpec(
            gate=self.linear("gate", width, hidden, layer, bias=bias),
            up=self.linear("up", width, hidden, layer, bias=bias),
            down=self.linear("down", hidden, width, layer, bias=bias),
            activation=activation or self.activation(),
        )
        if len({part.bias is None for part in (spec.gate, spec.up, spec.down)}) > 1:
            name = self.tensor_name("gate", layer)
            raise self.config.unsupported(f"{name}.bias", "is there without those of up and down")
        return spec

    def residual(
        self, role: str, layer: int, *, before: bool = True, after: bool = False, scale: float = 1.0
    ) -> ResidualSpec:
        """The norms before and after the block `role` ("attention" or "feed_forward")."""
        return ResidualSpec(
            self.norm(f"{role}_norm", self.hidden_size, layer) if before else None,
            self.norm(f"{role}_post_norm", self.hidden_size, layer) if after else None,
            scale,
        )

    def layer(
        self,
        index: int,
        attention: AttentionSpec,
        feed_forward: FeedForwardSpec | None = None,
        **residual: Any,
    ) -> LayerSpec:
        """One layer; `residual` is for both blocks, as `residual` takes it."""
        return LayerSpec(
            attention,
            self.residual("attention", index, **residual),
            feed_forward or self.feed_forward(index),
            self.residual("feed_forward", index, **residual),
        )

    def model(self, family: str, layers: tuple[LayerSpec, ...], **changes: Any) -> ModelSpec:
        """The whole model around its layers."""
        vocabulary = self.config.integer("vocab_size")
        embedding = self.matrix("embedding", vocabulary, self.hidden_size)
        head = LinearSpec(embedding)
        if not self.config.boolean("tie_word_embeddings", False):
            head = self.linear("head", vocabulary, self.hidden_size)
        spec = ModelSpec(
            family=family,
            vocabulary_size=vocabulary,
            hidden_size=self.hidden_size,
            context_length=0,
            embedding=embedding,
            layers=layers,
            final_norm=self.norm("final_norm", self.hidden_size),
            head=head,
        )
        length = self.config.integer("max_position_embeddings")
        lengths = [_extended(length, rope.scaling) for rope in spec.ropes()]
        return replace(spec, **{"context_length": max(lengths, default=length), **changes})


def _extended(length: int, scaling: RopeScaling | None) -> int:
    """The context length of a model that was made for `length` and then given this scaling.

    Configs with the other scalings state the extended length themselves.
    """
    match scaling:
        case LinearScaling(factor) | DynamicScaling(factor, _):
            return int(length * max(factor, 1.0))
        case YarnScaling() as yarn:
            return max(length, int(yarn.original_length * yarn.factor))
        case _:
            return length
