"""A model that several ranks share says what it says alone, whichever way its parts are divided."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import numpy as np
import pytest

from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import Checkpoint, open_checkpoint
from firstlight.errors import DeviceError
from firstlight.formats.base import Floats
from firstlight.formats.registry import get_format
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec
from firstlight.model.matrices import kept_matrices
from firstlight.model.sharding import part_of_model
from firstlight.model.spec import ModelSpec
from firstlight.model.stored import column_unit
from firstlight.model.tensor_source import TensorSource
from firstlight.model.weights import load_weights, weight_bytes
from firstlight.ops import Ops
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import logits
from tests.support.thread_ranks import ThreadCollective, on_ranks
from tests.support.tiny_models import TinyModel, prompt

Tiny = Callable[..., TinyCheckpoint]
TOKENS = 40


def part(checkpoint: Checkpoint, rank: int, ranks: int, target: str | None = None) -> ModelSpec:
    block = 1 if target is None else get_format(target).block_values

    def unit(source: TensorSource) -> int:
        return lcm(column_unit(source, checkpoint), block)

    return part_of_model(make_spec(checkpoint), rank, ranks, unit, "devices")


def shared_logits(
    checkpoint: Checkpoint, ranks: int, target: str | None = None, chunk: int = 17
) -> list[Floats]:
    """Every rank's logits after each token."""

    def run(rank: int, ops: Ops, collective: ThreadCollective) -> Floats:
        spec = part(checkpoint, rank, ranks, target)
        weights = load_weights(spec, checkpoint, ops, target and get_format(target))
        return logits(Decoder(spec, weights, ops, collective), prompt(TOKENS), chunk)

    return on_ranks(ranks, lambda: open_device("numpy"), run)


def assert_same(found: list[Floats], expected: Floats) -> None:
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])
    np.testing.assert_allclose(found[0], expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("llama-biases", 2),
        ("llama-3", 6),  # tied; more ranks than heads of keys and values
        ("qwen3-mixed", 2),
        ("gemma2", 2),
        ("phi3", 2),  # fused projections
        ("olmo2", 4),  # norms over all heads
        ("granite", 2),
        ("mixtral", 2),  # 5 experts
        ("qwen2_moe", 2),
        ("glm4_moe", 2),
        ("gpt_oss", 2),
        ("deepseek_v2", 3),
        ("deepseek_v3", 2),
        ("deepseek_v32", 2),
        ("deepseek_v4", 3),
    ],
)
def test_ranks_give_the_logits_of_the_whole(tiny: Tiny, name: str, ranks: int) -> None:
    found = tiny(name)
    assert_same(
        shared_logits(open_checkpoint(found.folder), ranks),
        logits(found.decoder("numpy"), prompt(TOKENS)),
    )


BLOCKS = TinyModel(
    "llama-blocks",
    "LlamaForCausalLM",
    {
        "hidden_size": 64,
        "head_dim": 32,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "tie_word_embeddings": True,
    },
)


def test_what_is_converted_is_divided_between_blocks(
    make: Callable[[TinyModel], TinyCheckpoint],
) -> None:
    folder = make(BLOCKS).folder
    checkpoint = open_checkpoint(folder)
    target = get_format("q8_0")
    spec, ops = make_spec(checkpoint), open_device("numpy")
    whole = Decoder(spec, load_weights(spec, checkpoint, ops, target), ops)
    # Blocks are the same, so that the same values are rounded in the same way.
    assert_same(shared_logits(checkpoint, 2, "q8_0"), logits(whole, prompt(TOKENS)))
    for rank, width in enumerate((64, 96)):
        mine = part(checkpoint, rank, 2, "q8_0")
        assert mine.layers[0].feed_forward.width == width  # type: ignore[union-attr]
        kept = kept_matrices(mine, checkpoint, ops, target)
        assert {matrix.format.name for matrix in kept} == {"q8_0"}


def test_ranks_hold_their_share_of_weights_and_state(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    whole = make_spec(checkpoint)
    parts = [part(checkpoint, rank, 2) for rank in range(2)]
    norms = 4 * 48 * 5
    held = [weight_bytes(each, checkpoint) for each in parts]
    assert sum(held) == weight_bytes(whole, checkpoint) + norms
    assert held[0] <= held[1]  # a plan for the last rank is enough for all
    for each in parts:
        assert each.layers[0].attention.key_value_heads == 1
        assert each.active_parameters() < 0.52 * whole.active_parameters()
    together = {source for each in parts for source in each.sources()}
    assert len(together) > len(whole.sources())


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        ("llama", 4, "4 ranks cannot share 6 attention heads evenly. Use 2 devices, or one."),
        ("llama", 3, "3 ranks cannot share 2 heads of keys and values evenly. Use 2 devices"),
        ("mixtral", 6, "6 ranks cannot share 5 experts. Use 2 devices, or one."),
        ("deepseek_v4", 2, "2 ranks cannot share 3 groups of attention heads evenly. Use one dev"),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny: Tiny, name: str, ranks: int, message: str) -> None:
    with pytest.raises(DeviceError) as caught:
        part(open_checkpoint(tiny(name).folder), 0, ranks)
    assert message in str(caught.value)
