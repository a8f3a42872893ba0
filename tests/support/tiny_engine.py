"""A tiny model made of nothing but a spec and random weights, on the numpy backend.

It mixes full and sliding layers, with windows and pages of a few tokens, so that short sequences
cross many borders. Its greedy texts are varied, so that a mistake anywhere changes them.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from functools import cache

import numpy as np

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.model.attention_spec import GroupedQuerySpec
from firstlight.model.decoder import Decoder
from firstlight.model.feed_forward_spec import GatedFeedForwardSpec
from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.rope_spec import RopeScaling, RopeSpec
from firstlight.model.spec import LayerSpec, ModelSpec, ResidualSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.model.weights import Weights
from firstlight.ops import Ops

VOCABULARY = 61
WINDOW = 6
PAGE_TOKENS = 4
CONTEXT_LENGTH = 64
_HIDDEN, _HEADS, _KEY_VALUE_HEADS, _HEAD_SIZE, _WIDTH = 24, 4, 2, 8, 40

GREEDY = SamplingParameters()
SEEDED = SamplingParameters(temperature=1.5, top_k=40, top_p=0.95, presence_penalty=0.5, seed=7)


def tiny_spec(
    windows: tuple[int | None, ...] = (None, WINDOW, WINDOW),
    scaling: RopeScaling | None = None,
    context_length: int = CONTEXT_LENGTH,
) -> ModelSpec:
    """A spec with one layer for each window; None is a full layer."""
    return ModelSpec(
        family="tiny",
        vocabulary_size=VOCABULARY,
        hidden_size=_HIDDEN,
        context_length=context_length,
        embedding=TensorSource("embedding", (VOCABULARY, _HIDDEN)),
        layers=tuple(_layer(index, window, scaling) for index, window in enumerate(windows)),
        final_norm=NormSpec(_HIDDEN, 1e-6, TensorSource("norm", (_HIDDEN,))),
        head=LinearSpec(TensorSource("head", (VOCABULARY, _HIDDEN))),
    )


def _layer(index: int, window: int | None, scaling: RopeScaling | None) -> LayerSpec:
    def linear(name: str, rows: int, columns: int) -> LinearSpec:
        return LinearSpec(TensorSource(f"{index}.{name}", (rows, columns)))

    def norm(name: str) -> ResidualSpec:
        weight = TensorSource(f"{index}.{name}", (_HIDDEN,))
        return ResidualSpec(pre_norm=NormSpec(_HIDDEN, 1e-6, weight))

    attention = GroupedQuerySpec(
        heads=_HEADS,
        key_value_heads=_KEY_VALUE_HEADS,
        head_size=_HEAD_SIZE,
        query=linear("query", _HEADS * _HEAD_SIZE, _HIDDEN),
        key=linear("key", _KEY_VALUE_HEADS * _HEAD_SIZE, _HIDDEN),
        value=linear("value", _KEY_VALUE_HEADS * _HEAD_SIZE, _HIDDEN),
        output=linear("output", _HIDDEN, _HEADS * _HEAD_SIZE),
        scale=_HEAD_SIZE**-0.5,
        rope=RopeSpec(_HEAD_SIZE, 10_000.0, scaling),
        window=window,
    )
    feed_forward = GatedFeedForwardSpec(
        gate=linear("gate", _WIDTH, _HIDDEN),
        up=linear("up", _WIDTH, _HIDDEN),
        down=linear("down", _HIDDEN, _WIDTH),
        activation="silu",
    )
    return LayerSpec(attention, norm("attention_norm"), feed_forward, norm("feed_forward_norm"))


def random_tensors(spec: ModelSpec, seed: int = 2) -> dict[str, np.ndarray]:
    """A float32 array for every tensor of the spec, by name."""
    generator = np.random.default_rng(seed)
    return {
        source.name: _random_tensor(source, generator).astype(np.float32)
        for source in spec.sources()
    }


def _random_tensor(source: TensorSource, generator: np.random.Generator) -> np.ndarray:
    if len(source.shape) == 1:
        return generator.uniform(0.5, 1.5, source.shape)
    spread = 1.0 if source.name == "embedding" else 1.6 * source.shape[1] ** -0.5
    return spread * generator.standard_normal(source.shape)


def tiny_decoder(
    spec: ModelSpec, tensors: dict[str, np.ndarray] | None = None, ops: Ops | None = None
) -> Decoder:
    """The decoder of a spec with these tensors, or random ones."""
    ops = ops or NumpyBackend()
    tensors = tensors or random_tensors(spec)
    packed = {source: _pack(tensors[source.name], ops) for source in spec.sources()}
    return Decoder(spec, Weights(packed), ops)


def _pack(array: np.ndarray, ops: Ops) -> object:
    if array.ndim == 1:
        return ops.upload(array)
    return ops.pack(Weight(get_format("f32"), array.shape, array.view(np.uint8)))


@cache
def shared_decoder() -> Decoder:
    """The decoder of `tiny_spec()`, made once; a decoder has no state of its own."""
    return tiny_decoder(tiny_spec())


def tiny_engine(
    decoder: Decoder | None = None,
    context_length: int = CONTEXT_LENGTH,
    sequences: int = 1,
    token_budget: int = 512,
    state_dtype: str = "float32",
) -> Engine:
    """An engine with small pages."""
    return Engine(
        decoder or shared_decoder(),
        context_length,
        sequences,
        token_budget,
        state_dtype,
        page_tokens=PAGE_TOKENS,
    )


def run_to_end(engine: Engine, limit: int = 10_000) -> None:
    """Step until nothing is left to do; fails where that never comes."""
    for _ in range(limit):
        if not engine.step():
            return
    raise AssertionError("the engine never comes to an end")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """A random prompt; equal arguments give equal prompts."""
    return np.random.default_rng([length, seed]).integers(0, VOCABULARY, length).tolist()


def tokens_alone(
    prompt: Items[int],
    sampling: SamplingParameters = GREEDY,
    stop: StopConditions | None = None,
    decoder: Decoder | None = None,
) -> list[int]:
    """The new tokens of a sequence that has a fresh engine to itself, its prompt in one step."""
    engine = tiny_engine(decoder)
    sequence = engine.add(prompt, sampling, stop or StopConditions(max_tokens=16))
    run_to_end(engine)
    return sequence.output_ids


def free_pages(engine: Engine) -> list[int]:
    """How many pages of each stream group are free."""
    return [engine.pages.free_pages(group) for group in range(len(engine.pages.groups))]


class PieceTokenizer(Tokenizer):
    """Each token id stands for some bytes; encoding takes one id a character.

    Args:
        pieces: bytes of ids 0, 1, ...; ids beyond have none.
    """

    beginning_id = None
    end_ids: frozenset[int] = frozenset()
    special_ids: frozenset[int] = frozenset()
    chat_template = None

    def __init__(self, pieces: Items[bytes]) -> None:
        self.pieces = tuple(pieces)
        self.vocabulary_size = len(self.pieces)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return [self.pieces.index(character.encode()) for character in text]

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id] if token_id < len(self.pieces) else b""
