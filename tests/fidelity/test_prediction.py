"""Multi-token prediction: the layer's logits, and that its guesses change nothing but the steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from firstlight import load
from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import state_bytes_per_token
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Progress
from firstlight.errors import CheckpointError, RequestError
from firstlight.formats.base import Floats
from firstlight.model.batch import Batch
from firstlight.model.compressed_spec import CompressedAttentionSpec
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.predictor import Predictor
from firstlight.model.weights import load_weights
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.config_files import ConfigFiles, Header, tiny_config_files
from tests.support.deepseek_layout import rename_tensors
from tests.support.deepseek_v4_files import write_published
from tests.support.deepseek_v4_prediction import (
    WithStreamsPredictor,
    with_good_streams_predictor,
    with_streams_predictor,
)
from tests.support.prediction_layers import WithPredictor, with_good_predictor, with_predictor
from tests.support.tiny_models import prompt, tiny_model

NAMES = ["deepseek_v3", "deepseek_v32", "deepseek_v32-few", "deepseek_v4", "deepseek_v4-yarn"]
GREEDY = SamplingParameters()
SEEDED = SamplingParameters(temperature=0.9, top_k=40, presence_penalty=0.2, seed=11)
PAGE_TOKENS = 16

Made = tuple[WithPredictor | WithStreamsPredictor, Path]


def _random(name: str) -> WithPredictor | WithStreamsPredictor:
    tiny = tiny_model(name)
    return with_streams_predictor(tiny, 5) if _has_streams(name) else with_predictor(tiny)


def _has_streams(name: str) -> bool:
    return name.startswith("deepseek_v4")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """(name of a tiny model, noise) -> a model whose predictor is mostly right, and its files."""

    @cache
    def make(name: str, noise: float = 0.0) -> Made:
        tiny = tiny_model(name)
        made: WithPredictor | WithStreamsPredictor
        if _has_streams(name):
            made = with_good_streams_predictor(tiny, noise=noise, seed=5)
        else:
            made = with_good_predictor(tiny, noise=noise)
        return made, made.write(tmp_path_factory.mktemp(name))

    return make


def _decoder(folder: Path, device: str, *, predictor: bool = True) -> Decoder:
    checkpoint = open_checkpoint(folder)
    spec, ops = make_spec(checkpoint, predictor=predictor), open_device(device, exact=True)
    return Decoder(spec, load_weights(spec, checkpoint, ops), ops)


def _engine(decoder: Decoder, speculation: Any = "mtp", **options: Any) -> Engine:
    options = {"sequences": 1, "token_budget": 64, "page_tokens": PAGE_TOKENS, **options}
    return Engine(decoder, 256, speculation=speculation, **options)


def _finish(engine: Engine) -> None:
    while engine.step():
        pass


def _run(engine: Engine, tokens: list[int], sampling: SamplingParameters, count: int) -> list[int]:
    sequence = engine.add(tokens, sampling, StopConditions(max_tokens=count))
    _finish(engine)
    assert sequence.error is None
    return list(sequence.output_ids)


# The layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("name", NAMES)
def test_its_logits_are_those_of_the_equations(
    name: str, chunk: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every position of a prompt, and of tokens that follow it, in any chunks."""
    made = _random(name)
    decoder = _decoder(made.write(tmp_path), device)
    found: dict[int, Floats] = {}
    predict = Predictor.predict

    def watched(self: Predictor, batch: Batch, hidden: Any, state: Any) -> Any:
        predicted = predict(self, batch, hidden, state)
        rows = np.arange(len(batch.positions), dtype=np.int32)
        logits = decoder.ops.download(self.logits(predicted, rows))
        # A guess of a guess is of a position that comes again, once its token is known.
        found.update(zip(batch.positions.tolist(), logits, strict=True))
        return predicted

    monkeypatch.setattr(Predictor, "predict", watched)
    engine = _engine(decoder, token_budget=chunk)
    output = _run(engine, prompt(50), GREEDY, 12)
    expected = made.logits([*prompt(50), *output])
    last = len(expected) - 1  # of the last token, nothing more is to be guessed
    assert set(range(last)) <= set(found)
    distances = [np.abs(found[position] - expected[position]).max() for position in range(last)]
    assert max(distances) < 1e-4


def test_its_state_is_one_layer_s_more(good: Callable[..., Made]) -> None:
    _, folder = good("deepseek_v32")
    checkpoint = open_checkpoint(folder)
    without, spec = make_spec(checkpoint), make_spec(checkpoint, predictor=True)
    assert without.predictor is None
    layer = state_bytes_per_token(without) // len(without.layers)
    assert state_bytes_per_token(spec) == state_bytes_per_token(without) + layer
    assert len(spec.sources()) > len(without.sources())
    names = {source.name for source in spec.sources()}
    assert not any(name.endswith(("layers.2.embed_tokens.weight", "shared_head.head.weight"))
                   for name in names)  # fmt: skip


def test_deepseek_s_own_names(good: Callable[..., Made], tmp_path: Path) -> None:
    _, folder = good("deepseek_v3", 0.2)
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    assert "layers.2.eh_proj.weight" in rename_tensors(renamed)
    expected = _engine(_decoder(folder, "numpy"))
    found = _engine(_decoder(renamed, "numpy"))
    assert _run(found, prompt(9), GREEDY, 40) == _run(expected, prompt(9), GREEDY, 40)
    assert found.statistics().accepted_tokens == expected.statistics().accepted_tokens > 10


# Guesses ---------------------------------------------------------------------------------------


_RIGHT = [
    *(
        (name, noise, sampling)
        for name in ("deepseek_v3", "deepseek_v32")
        for noise in (0.0, 0.15, 0.25)
        for sampling in (GREEDY, SEEDED)
    ),
    ("deepseek_v4", 0.0, GREEDY),
    ("deepseek_v4", 0.25, SEEDED),
]


@pytest.mark.parametrize(("name", "noise", "sampling"), _RIGHT)
def test_output_is_the_same_in_fewer_steps(
    good: Callable[..., Made], name: str, noise: float, sampling: SamplingParameters, device: str
) -> None:
    _, folder = good(name, noise)
    decoder = _decoder(folder, device)
    count = 60
    expected = _run(_engine(decoder, "off"), prompt(20), sampling, count)
    engine = _engine(decoder)
    assert _run(engine, prompt(20), sampling, count) == expected
    done = engine.statistics()
    assert done.proposed_tokens >= done.accepted_tokens > 0
    assert done.steps == count - done.accepted_tokens
    if noise == 0.0 and sampling is GREEDY:
        assert done.accepted_tokens == done.proposed_tokens
        assert done.steps < count // 3
    if noise == 0.25:
        assert done.accepted_tokens < done.proposed_tokens


def test_a_random_predictor_is_mostly_wrong_and_changes_nothing(
    tmp_path: Path, device: str
) -> None:
    made = with_predictor(tiny_model("deepseek_v3"))
    decoder = _decoder(made.write(tmp_path), device)
    expected = _run(_engine(decoder, "off"), prompt(20), GREEDY, 60)
    engine = _engine(decoder)
    assert _run(engine, prompt(20), GREEDY, 60) == expected
    done = engine.statistics()
    assert done.accepted_tokens < done.proposed_tokens < 40  # it pauses


@pytest.mark.parametrize(
    ("name", "pages", "sampling"),
    [("deepseek_v32", 11, GREEDY), ("deepseek_v32", 11, SEEDED), ("deepseek_v4", 5, SEEDED)],
    ids=["greedy", "seeded", "v4-seeded"],
)
def test_many_sequences_preempted_and_with_shared_prefixes(
    good: Callable[..., Made], name: str, pages: int, sampling: SamplingParameters
) -> None:
    _, folder = good(name, 0.2)
    decoder = _decoder(folder, "numpy")
    prompts = [prompt(33, seed) + prompt(seed + 1, 90 + seed) for seed in (0, 0, 1, 1, 2)]
    expected = [_run(_engine(decoder, "off"), each, sampling, 30) for each in prompts]
    page = PAGE_TOKENS * state_bytes_per_token(decoder.spec)
    engine = _engine(decoder, sequences=4, state_memory=pages * page, token_budget=24)
    running = [engine.add(each, sampling, StopConditions(max_tokens=30)) for each in prompts]
    _finish(engine)
    assert [sequence.output_ids for sequence in running] == expected
    done = engine.statistics()
    assert done.preemptions > 0
    assert done.cached_tokens > 0
    assert done.accepted_tokens > 20
    pools = engine.pages.pools
    assert [pool.free for pool in pools] == list(engine.pages.capacities)


def test_sequences_are_guessed_for_together(
    good: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them take as many passes through the predictor as one."""
    _, folder = good("deepseek_v3")
    decoder = _decoder(folder, "numpy")
    passes = []
    predict = Predictor.predict

    def counted(self: Predictor, batch: Batch, hidden: Any, state: Any) -> Any:
        passes.append(len(batch.positions))
        return predict(self, batch, hidden, state)

    monkeypatch.setattr(Predictor, "predict", counted)
    counts = []
    for sequences in (1, 3):
        engine = _engine(decoder, sequences=sequences, token_budget=256)
        running = [
            engine.add(prompt(20, seed), GREEDY, StopConditions(max_tokens=40))
            for seed in range(sequences)
        ]
        passes.clear()
        _finish(engine)
        counts.append((len(passes), engine.statistics().steps))
        assert all(len(sequence.output_ids) == 40 for sequence in running)
        done = engine.statistics()
        assert done.accepted_tokens == done.proposed_tokens
    assert counts[1] == counts[0]


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v4"])
def test_where_it_goes_on_elsewhere_it_guesses_on(good: Callable[..., Made], name: str) -> None:
    _, folder = good(name, 0.2)
    decoder = _decoder(folder, "numpy")
    expected = _run(_engine(decoder, "off"), prompt(20), SEEDED, 50)
    engine = _engine(decoder)
    sequence = engine.add(
        prompt(20), SEEDED, StopConditions(max_tokens=50), output_ids=expected[:23]
    )
    _finish(engine)
    assert sequence.output_ids == expected
    assert engine.statistics().accepted_tokens > 8


def test_only_tokens_that_are_allowed_are_guessed(good: Callable[..., Made]) -> None:
    _, folder = good("deepseek_v3")
    decoder = _decoder(folder, "numpy")

    def even(output: Any) -> Any:
        return np.arange(decoder.spec.vocabulary_size) % 2 == len(output) % 2

    outputs = []
    for speculation in ("off", "mtp"):
        engine = _engine(decoder, speculation)
        sequence = engine.add(prompt(9), GREEDY, StopConditions(max_tokens=30), allowed=even)
        _finish(engine)
        outputs.append(sequence.output_ids)
        assert [token % 2 for token in sequence.output_ids] == [0, 1] * 15
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("at", [1, 2, 9, 10])
def test_an_interrupt_loses_nothing(good: Callable[..., Made], at: int) -> None:
    _, folder = good("deepseek_v3", 0.2)
    decoder = _decoder(folder, "numpy")
    expected = _run(_engine(decoder, "off"), prompt(20), SEEDED, 30)
    engine = _engine(decoder)
    interrupts = [True]

    def receive(progress: Progress) -> bool:
        if len(progress.sequence.output_ids) == at and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return False

    sequence = engine.add(prompt(20), SEEDED, StopConditions(max_tokens=30), receive=receive)
    with pytest.raises(KeyboardInterrupt):
        _finish(engine)
    _finish(engine)
    assert sequence.output_ids == expected
    assert not interrupts


def test_logits_of_a_prompt_alone_need_no_guesses(good: Callable[..., Made]) -> None:
    _, folder = good("deepseek_v3")
    decoder = _decoder(folder, "numpy")
    found = _engine(decoder).logits(prompt(40))
    np.testing.assert_allclose(found, _engine(decoder, "off").logits(prompt(40)), atol=2e-6)


# What is asked for -------------------------------------------------------------------------------


def test_load_guesses_by_it_where_asked(good: Callable[..., Made]) -> None:
    _, folder = good("deepseek_v3")
    outputs = {}
    for speculation in ("off", "mtp"):
        model = load(folder, speculation=speculation, exact=True, cache=False, tune=None)  # type: ignore[arg-type]
        outputs[speculation] = model.generate(prompt(12), max_tokens=40).token_ids
        assert (model.spec.predictor is not None) == (speculation == "mtp")
        accepted = model.engine.statistics().accepted_tokens
        assert (accepted > 25) == (speculation == "mtp")
    assert outputs["off"] == outputs["mtp"]


def test_a_model_without_it_is_refused(tiny: Callable[..., TinyCheckpoint]) -> None:
    checkpoint = tiny("deepseek_v3")
    with pytest.raises(RequestError, match="no layer of multi-token prediction") as refusal:
        load(checkpoint.folder, speculation="mtp")
    assert "auto" in refusal.value.remedy
    with pytest.raises(RequestError, match="no layer of multi-token prediction"):
        _engine(checkpoint.decoder("numpy"))


_PARTS = [
    *(("deepseek_v3", f"model.layers.2.{role}.weight")
      for role in ("enorm", "hnorm", "eh_proj", "shared_head.norm")),
    *(("deepseek_v4", f"mtp.0.{role}")
      for role in ("e_proj.weight", "norm.weight", "hc_head_fn", "ffn.gate.bias")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "missing"), _PARTS)
def test_a_part_of_it_that_is_missing_is_named(
    good: Callable[..., Made], name: str, missing: str
) -> None:
    _, folder = good(name)
    checkpoint = open_checkpoint(folder)
    headers = {
        name: Header(tuple(info.shape)) for name, info in checkpoint.tensors.items()
        if name != missing
    }  # fmt: skip
    files = ConfigFiles(checkpoint.config, headers)
    assert make_spec(files).predictor is None
    with pytest.raises(CheckpointError, match=missing):
        make_spec(files, predictor=True)


def test_of_several_the_first_is_used(good: Callable[..., Made]) -> None:
    files = tiny_config_files("deepseek_v3")
    extra = {
        name.replace("model.layers.1.", f"model.layers.{layer}."): header
        for name, header in files.tensors.items()
        if name.startswith("model.layers.1.")
        for layer in (2, 3)
    }
    spec = make_spec(
        replace(files, tensors={**files.tensors, **extra}).changed(num_nextn_predict_layers=2)
    )
    assert spec.notes == (
        "model.layers.2, a layer of multi-token prediction, is used with --speculate mtp only",
        "model.layers.3, a layer of multi-token prediction, is left out",
    )


# DeepSeek-V4 -------------------------------------------------------------------------------------


def test_v4_as_published_guesses_from_fp8_and_four_bits(tmp_path: Path) -> None:
    """By random tensors, so that hardly a guess is right; past several runs of four."""
    write_published(tmp_path, quantised=True)
    decoder = _decoder(tmp_path, "cpu")
    formats = {
        source.name: decoder.ops.unpack(decoder.weights[source]).format.name  # type: ignore[attr-defined]
        for source in decoder.spec.sources()
        if source.name.startswith("mtp.0.") and len(source.shape) == 2
    }
    assert formats["mtp.0.e_proj.weight"] == formats["mtp.0.h_proj.weight"] == "f8_e4m3"
    assert formats["mtp.0.ffn.experts.5.w2.weight"] == "mxfp4"
    assert not any("tid2eid" in name or "compressor" in name for name in formats)
    outputs = [
        _run(_engine(decoder, speculation), prompt(40), SEEDED, 24)
        for speculation in ("off", "mtp")
    ]
    assert outputs[0] == outputs[1]


def test_a_drafter_of_blocks_is_left_out(tmp_path: Path) -> None:
    """Later releases of DeepSeek-V4 have another module in the same place."""
    write_published(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {**load_file(path), "mtp.0.main_proj.weight": torch.zeros(64, 192)}
    save_file(tensors, path)
    checkpoint = open_checkpoint(tmp_path)
    spec = make_spec(checkpoint, predictor=True)
    assert spec.predictor is None
    assert spec.notes == (
        "mtp.0, a part of a module that drafts blocks of tokens, is left out",
    )  # fmt: skip
    with pytest.raises(RequestError, match="no layer of multi-token prediction"):
        _engine(_decoder(tmp_path, "numpy"))


@pytest.mark.parametrize(("ratio", "kind"), [(0, None), (4, 4), (128, 128)])
def test_its_attention_is_what_the_config_says(
    tmp_path: Path, ratio: int, kind: int | None
) -> None:
    write_published(tmp_path)
    files = open_checkpoint(tmp_path)
    ratios = [0, 128, 4, 128, ratio]
    spec = spec_of_config(
        ConfigFiles({**files.config, "compress_ratios": ratios},
                    {name: Header(tuple(info.shape)) for name, info in files.tensors.items()})
    )  # fmt: skip
    assert spec.predictor is not None
    found = spec.predictor.layer.attention
    assert isinstance(found, CompressedAttentionSpec)
    assert (found.compressor and found.compressor.stride) == kind
