"""What a step needs at least, counted by hand."""

from __future__ import annotations

import pytest

import firstlight
from firstlight.benchmark.model_speed import ModelBenchmark
from firstlight.benchmark.step_cost import StepCost, step_cost
from firstlight.host.ceilings import Ceilings
from tests.support.tiny_chat import write_chat_model

COST = StepCost(weight_bytes=1000, inner_operations=600, head_operations=200, state_bytes=10)


def ceilings(bandwidth: float, peak: float) -> Ceilings:
    return Ceilings("a device", bandwidth, {"f32": peak / 2, "bf16": peak})


def test_memory_bounds_a_step_of_few_rows() -> None:
    memory = ceilings(100.0, 1e9)
    assert COST.decode_seconds(1, 50, memory) == pytest.approx((1000 + 50 * 10) / 100)
    assert COST.decode_seconds(4, 50, memory) == pytest.approx((1000 + 4 * 50 * 10) / 100)
    assert COST.prefill_seconds(20, 8, memory) == pytest.approx(3 * 1000 / 100)


def test_arithmetic_bounds_a_step_of_many() -> None:
    arithmetic = ceilings(1e12, 100.0)
    assert COST.decode_seconds(4, 50, arithmetic) == pytest.approx(4 * 800 / 100)
    assert COST.prefill_seconds(20, 8, arithmetic) == pytest.approx((20 * 600 + 200) / 100)


def test_float32_is_the_peak_where_there_is_no_bfloat16() -> None:
    only = Ceilings("a device", 1e12, {"f32": 100.0})
    assert COST.decode_seconds(1, 0, only) == pytest.approx(8.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> firstlight.LanguageModel:
    folder = write_chat_model(tmp_path_factory.mktemp("chat"))
    return firstlight.load(folder, "numpy", context_length=64, sequences=4)


def test_the_cost_of_a_model_is_that_of_its_matrices(model: firstlight.LanguageModel) -> None:
    cost = step_cost(model)
    shapes = {source.name: source.shape for source in model.spec.sources() if len(source.shape) > 1}
    elements = sum(rows * columns for rows, columns in shapes.values())
    embedding = model.spec.vocabulary_size * model.spec.hidden_size
    if not model.spec.tied:
        elements -= embedding
    assert cost.head_operations == 2 * embedding
    assert cost.inner_operations == 2 * (elements - embedding)
    assert cost.weight_bytes > 0
    heads = sum(
        layer.attention.key_value_heads * layer.attention.head_size for layer in model.spec.layers
    )
    width = {"float32": 4, "bfloat16": 2}[model.engine.state_dtype]
    assert cost.state_bytes == 2 * heads * width


def test_every_request_of_a_throughput_is_computed(model: firstlight.LanguageModel) -> None:
    done: list[int] = []
    benchmark = ModelBenchmark(model, ceilings(1e9, 1e9), done.append)
    benchmark.warm_up()
    done.clear()
    found = benchmark.throughput(3, 7, prompt_tokens=9, output_tokens=5)
    assert (found.result.requests, found.result.failed) == (7, 0)
    assert (found.result.prompt_tokens, found.result.output_tokens) == (7 * 9, 7 * 5)
    assert sum(done) == 7
    assert found.ceiling_share > 0
    speed = benchmark.prefill(20, 2)
    assert speed.tokens_per_second > 0
    assert benchmark.decode(4, 6, 2).ceiling_share > 0
    assert not model.engine.step()  # nothing is left on the engine
