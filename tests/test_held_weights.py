"""What of a model larger than memory is held there, and how slow it is said to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from firstlight import held_weights
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.formats.registry import get_format
from firstlight.held_weights import HELD_SHARE, HeldWeights, forecast
from firstlight.model.families.registry import make_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.matrices import KeptMatrix, kept_matrices
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import tiny_model

PLENTY = 1 << 40


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, list[KeptMatrix]]:
    """A tiny mixture of experts."""
    folder = tmp_path_factory.mktemp("mixtral")
    checkpoint = open_checkpoint(
        write_checkpoint(tiny_model("mixtral").build(), folder, dtype="bfloat16")
    )
    spec = make_spec(checkpoint)
    return spec, list(kept_matrices(spec, checkpoint))


class Chip:
    """Weights whose addresses are invented, and what was held of them."""

    def __init__(
        self, matrices: list[KeptMatrix], monkeypatch: pytest.MonkeyPatch, available: int = PLENTY
    ) -> None:
        self.available = available
        self.held: dict[int, int] = {}
        self.sources: dict[int, TensorSource] = {}
        self.weights: dict[TensorSource, Any] = {}
        for number, matrix in enumerate(matrices):
            self.sources[number] = matrix.source
            data = SimpleNamespace(nbytes=matrix.nbytes, ctypes=SimpleNamespace(data=number))
            self.weights[matrix.source] = SimpleNamespace(data=data)
        monkeypatch.setattr(held_weights, "_HOT", 2.0)  # of few experts none can be used much more
        monkeypatch.setattr(held_weights, "hold", self.held.__setitem__)
        monkeypatch.setattr(held_weights, "let_go", lambda address, _: self.held.pop(address))
        monkeypatch.setattr(held_weights, "available_memory", lambda: self.available)

    def held_sources(self) -> set[TensorSource]:
        return {self.sources[number] for number in self.held}


def experts_of(spec: ModelSpec, layer: int) -> ExpertsSpec:
    found = spec.layers[layer].feed_forward
    assert isinstance(found, ExpertsSpec)
    return found


def expert_sources(spec: ModelSpec, layer: int, expert: int) -> set[TensorSource]:
    found = experts_of(spec, layer).experts[expert]
    return {found.gate.weight, found.up.weight, found.down.weight}


def sizes(spec: ModelSpec, matrices: list[KeptMatrix]) -> tuple[int, int, int]:
    """Bytes of what every token needs, of one expert, and of all experts."""
    shares = spec.expert_shares()
    dense = sum(
        each.nbytes
        for each in matrices
        if each.source not in shares and (spec.tied or each.source != spec.embedding)
    )
    experts = sum(each.nbytes for each in matrices if each.source in shares)
    count = sum(len(experts_of(spec, layer).experts) for layer in range(len(spec.layers)))
    return dense, experts // count, experts


def counts_of(spec: ModelSpec) -> list[Any]:
    return [
        np.zeros(len(experts_of(spec, layer).experts), np.int64)
        for layer in range(len(spec.layers))
    ]


def read_ahead_of(spec: ModelSpec) -> list[Any]:
    return [np.zeros((len(each), 3, 2), np.int64) for each in counts_of(spec)]


def held_weights_of(
    spec: ModelSpec, matrices: list[KeptMatrix], chip: Chip, counts: list[Any], room: int
) -> HeldWeights:
    weights: Any = chip.weights
    mapped = [each.source for each in matrices]
    memory = -int(-room // HELD_SHARE) + 1
    return HeldWeights(spec, weights, mapped, counts, read_ahead_of(spec), memory)


Mixture = tuple[ModelSpec, list[KeptMatrix]]


def test_what_every_token_needs_is_held_first(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, matrices = mixture
    dense, expert, _ = sizes(spec, matrices)
    chip = Chip(matrices, monkeypatch)
    held = held_weights_of(spec, matrices, chip, counts_of(spec), dense + 2 * expert)
    told: list[int] = []
    held.begin(told.append)
    # Of experts none is known to be used more than others.
    assert sum(told) == held.held_bytes == dense
    everybodys = {each.source for each in matrices if each.source not in spec.expert_shares()}
    assert everybodys - chip.held_sources() <= {spec.embedding}
    assert not chip.held_sources() & spec.expert_shares().keys()


def test_nothing_is_held_without_room(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, matrices = mixture
    chip = Chip(matrices, monkeypatch)
    held = held_weights_of(spec, matrices, chip, counts_of(spec), -5)
    held.begin()
    held.review()
    assert not chip.held


def test_what_is_held_follows_the_use_of_experts(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, matrices = mixture
    dense, expert, _ = sizes(spec, matrices)
    monkeypatch.setattr(held_weights, "_MOVED_SHARE", 1.0)
    chip, counts = Chip(matrices, monkeypatch), counts_of(spec)
    held = held_weights_of(spec, matrices, chip, counts, dense + 2 * expert)
    held.begin()
    last = len(spec.layers) - 1
    for _ in range(2):  # the second review finds the counts halved, and changes nothing
        counts[0][-1] += 100
        counts[last][0] += 100
        held.review()
        shares = spec.expert_shares()
        expected = expert_sources(spec, 0, len(counts[0]) - 1) | expert_sources(spec, last, 0)
        assert chip.held_sources() & shares.keys() == expected
        assert held.held_bytes == dense + 2 * expert
    assert counts[0][-1] == 75


def test_use_that_differs_little_moves_nothing(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, matrices = mixture
    dense, _, experts = sizes(spec, matrices)
    chip, counts = Chip(matrices, monkeypatch), counts_of(spec)
    held = held_weights_of(spec, matrices, chip, counts, dense + experts)
    held.begin()
    before = dict(chip.held)
    for each in counts:
        each[...] = np.linspace(1000, 1100, len(each)).astype(np.int64)
    held.review()
    assert chip.held == before


def test_little_moves_at_a_time(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, matrices = mixture
    dense, expert, _ = sizes(spec, matrices)
    room = dense + 2 * expert
    monkeypatch.setattr(held_weights, "_MOVED_SHARE", 1.5 * expert / room)
    chip, counts = Chip(matrices, monkeypatch), counts_of(spec)
    held = held_weights_of(spec, matrices, chip, counts, room)
    held.begin()
    last = len(spec.layers) - 1
    for hot, still_there in ((0, 0), (len(counts[0]) - 1, 3)):
        before = chip.held_sources() & spec.expert_shares().keys()
        for layer in (0, last):
            counts[layer][...] = 0
            counts[layer][hot] = 10_000
        held.review()
        assert len(before & chip.held_sources()) == still_there
        assert held.held_bytes == room
    held.review()
    assert chip.held_sources() >= expert_sources(spec, 0, hot) | expert_sources(spec, last, hot)


def test_memory_that_others_need_is_given_back(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, matrices = mixture
    room, _, _ = sizes(spec, matrices)
    chip = Chip(matrices, monkeypatch)
    held = held_weights_of(spec, matrices, chip, counts_of(spec), room)
    held.begin()
    assert held.held_bytes == room
    chip.available = 0
    held.review()
    assert 0 < held.held_bytes <= room * (1 - 0.1)
    chip.available = PLENTY
    held.review()
    assert held.held_bytes == room


def test_it_is_reviewed_often_at_first(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, matrices = mixture
    chip = Chip(matrices, monkeypatch)
    held = held_weights_of(spec, matrices, chip, counts_of(spec), 1000)
    reviews: list[int] = []
    passes: list[int] = []
    monkeypatch.setattr(held, "review", lambda: reviews.append(len(passes)))
    for number in range(1008):
        passes.append(number)
        held.after_pass()
    assert reviews == [16, 48, 112, 240, 496, 752, 1008]


class TestForecast:
    def test_of_a_dense_model(self) -> None:
        bf16 = get_format("bf16")
        spec: Any = SimpleNamespace(expert_shares=dict, tied=True, embedding="a")
        matrices: Any = [
            KeptMatrix(name, bf16, bf16, False, 100)  # type: ignore[arg-type]
            for name in ("a", "b")
        ]
        found = forecast(spec, matrices, 80, 50.0)
        assert found.held == 60 and found.missing == 140
        assert found.token_seconds == pytest.approx(2.8, rel=1e-3)
        spec.tied = False  # then the embedding is not read but for a row
        found = forecast(spec, matrices, 80, 50.0)
        assert found.held == 60 and found.missing == 40

    def test_of_experts(self, mixture: Mixture) -> None:
        spec, matrices = mixture
        dense, expert, experts = sizes(spec, matrices)
        share = next(iter(spec.expert_shares().values()))
        memory = round((dense + expert) / HELD_SHARE)
        found = forecast(spec, matrices, memory, 1e3)
        assert found.missing == pytest.approx(share * (experts - expert), rel=0.01)
        assert found.prompt_seconds == pytest.approx((experts - expert) / 1e3, rel=0.01)
        assert found.token_seconds < found.prompt_seconds
        everything = forecast(spec, matrices, PLENTY, 1e3)
        assert everything.missing == 0 and everything.held == dense + experts
