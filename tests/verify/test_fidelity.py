"""Whole models compared: what an option changes is found, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import firstlight
from firstlight.errors import FirstlightError, RequestError, TokenizerError
from firstlight.progress import Advance
from firstlight.verify.divergence import Divergence
from firstlight.verify.fidelity import CHUNK_TOKENS, REFERENCE, Configuration, measure_fidelity
from firstlight.verify.texts import BUILT_IN
from tests.support.tiny_chat import write_chat_model

NUMPY = Configuration("numpy", exact=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 values fill whole blocks, so that everything can be converted."""
    return write_chat_model(tmp_path_factory.mktemp("model"), hidden_size=64, context_length=4096)


def test_figures_are_those_of_whole_texts(model: Path) -> None:
    """Beside logits of whole texts from models loaded here: the chunks lose nothing."""
    texts = {name: text[:200] for name, text in BUILT_IN.items() if name != "Chinese"}
    ours = measure_fidelity(model, Configuration(weights="int4"), REFERENCE, texts)
    expected, found = firstlight.load(model, exact=True), firstlight.load(model, weights="int4")
    for name, text in texts.items():
        token_ids = expected.encode(text)
        assert len(token_ids) > 3 * CHUNK_TOKENS
        whole = Divergence()
        whole.add(expected.logits(token_ids), found.logits(token_ids), token_ids[1:])
        assert ours.texts[name].tokens == len(token_ids)
        np.testing.assert_allclose(ours.texts[name].divergences, whole.divergences, atol=1e-6)
        np.testing.assert_allclose(ours.texts[name].losses, whole.losses, atol=1e-4)
    assert ours.total.tokens == sum(each.tokens for each in ours.texts.values())


def test_coarser_weights_diverge_more(model: Path) -> None:
    means = [
        measure_fidelity(model, Configuration(weights=name, exact=True), tokens=100).total.mean
        for name in (None, "bf16", "int8", "int4")
    ]
    assert means[0] < 1e-6
    assert means == sorted(means)
    assert means[3] > 20 * means[2] > 0


def test_state_in_bfloat16_shows(model: Path) -> None:
    found = measure_fidelity(model, Configuration(state="bfloat16"), tokens=100).total
    assert 1e-8 < found.mean < 1e-2


def test_cpu_beside_the_definitions(model: Path) -> None:
    found = measure_fidelity(model, REFERENCE, NUMPY, {"one": BUILT_IN["prose"]}, tokens=40)
    assert found.texts.keys() == {"one"}
    assert found.total.tokens == 40
    assert found.total.most < 1e-8
    assert found.total.agreement == 1


def test_texts_are_cut_to_the_context(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, context_length=50)
    found = measure_fidelity(folder, REFERENCE)
    assert [each.tokens for each in found.texts.values()] == [50, 50, 50]


def test_progress_counts_every_token(model: Path) -> None:
    totals, done = [], []

    @contextmanager
    def watch(description: str, total: int | None = None, *, unit: str = "") -> Iterator[Advance]:
        totals.append((description, total, unit))
        yield done.append

    found = measure_fidelity(model, REFERENCE, tokens=100, progress=watch)
    assert totals == [("Comparing", 300, "tokens")]
    assert sum(done) == found.total.tokens == 300


@pytest.mark.parametrize(
    ("texts", "tokens"), [({}, None), ({"empty": ""}, None), ({"short": "a"}, None), (None, 1)]
)
def test_nothing_to_compare(model: Path, texts: dict[str, str] | None, tokens: int | None) -> None:
    with pytest.raises(RequestError):
        measure_fidelity(model, REFERENCE, texts=texts, tokens=tokens)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        measure_fidelity(folder, REFERENCE)


@pytest.mark.parametrize(
    "wrong",
    [
        Configuration("abacus"),
        Configuration(weights="q4_k"),
        Configuration(state="float8"),
        Configuration(state="bfloat16", exact=True),
    ],
)
def test_configurations_that_there_are_not(model: Path, wrong: Configuration) -> None:
    with pytest.raises(FirstlightError):
        measure_fidelity(model, wrong, tokens=10)
