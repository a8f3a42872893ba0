"""The memory plan against what is really allocated, and the choice of a context length."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight import loading
from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import (
    MemoryPlan,
    activation_bytes,
    fit_context,
    gibibytes,
    plan_memory,
    state_bytes,
    state_bytes_per_token,
    weight_bytes,
)
from firstlight.engine.options import PAGE_TOKENS
from firstlight.errors import InsufficientMemoryError, RequestError
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.model.spec import ModelSpec
from firstlight.model.weights import load_weights
from tests.support.tiny_engine import VOCABULARY, random_tensors, tiny_decoder, tiny_spec

MIXED = (None, 6, 6)


def files_of(spec: ModelSpec, format_name: str = "f32") -> Any:
    """A checkpoint with the spec's tensors, matrices in a storage format."""
    weights = {}
    for name, array in random_tensors(spec).items():
        format = get_format(format_name if array.ndim == 2 else "f32")
        assert format.encode is not None
        data = format.encode(array).reshape(array.shape[0] if array.ndim == 2 else 1, -1)
        weights[name] = Weight(format, array.shape, data, name)
    headers = {
        name: SimpleNamespace(shape=weight.shape, format=weight.format.name)
        for name, weight in weights.items()
    }
    return SimpleNamespace(
        location="tiny",
        tensors=headers,
        format_of=lambda name: weights[name].format,
        weight=weights.__getitem__,
        rows=lambda name, start, stop: weights[name].row_slice(start, stop),
        release=lambda *_: None,
    )


def state_allocated(
    windows: tuple[int | None, ...], context: int, dtype: str, budget: int, sequences: int
) -> int:
    """Bytes of the arrays that an engine's state consists of."""
    engine = Engine(tiny_decoder(tiny_spec(windows)), context, sequences, budget, dtype)
    return sum(pages.nbytes for layer in engine._state for pages in layer)


@pytest.mark.parametrize("windows", [(None,), MIXED, (6, 100), (None, 1, 400)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("context", "budget"), [(1, 1), (64, 512), (65, 7), (1000, 512)])
def test_state_bytes_are_what_the_engine_allocates(
    windows: tuple[int | None, ...], dtype: str, context: int, budget: int
) -> None:
    spec = tiny_spec(windows)
    expected = state_bytes(spec, context, dtype, budget)
    assert state_allocated(windows, context, dtype, budget, 1) == expected
    plan = plan_memory(spec, files_of(spec), context, None, dtype, 3, budget)
    assert plan.state == 3 * expected == state_allocated(windows, context, dtype, budget, 3)


@pytest.mark.parametrize("memory", [100_000, 1_000_000, 30_000_000])
@pytest.mark.parametrize("windows", [(None,), MIXED, (6, 100)])
def test_a_given_amount_of_state_is_what_the_engine_allocates(
    windows: tuple[int | None, ...], memory: int
) -> None:
    spec = tiny_spec(windows)
    plan = plan_memory(spec, files_of(spec), 1000, None, "float32", 8, 64, state_memory=memory)
    engine = Engine(tiny_decoder(spec), 1000, 8, 64, "float32", state_memory=memory)
    allocated = sum(pages.nbytes for layer in engine._state for pages in layer)
    assert plan.state == allocated <= memory
    again = Engine(tiny_decoder(spec), 1000, 8, 64, "float32", state_memory=plan.state)
    assert again.pages.capacities == engine.pages.capacities


def test_loading_gives_many_sequences_room_where_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = tiny_spec(MIXED)
    files = files_of(spec)
    one = plan_memory(spec, files, 64)

    def planned(available: int, **options: Any) -> MemoryPlan:
        monkeypatch.setattr(loading, "available_memory", lambda: available)
        return loading.memory_plan(files, spec, state="float32", **options)

    assert planned(one.total).state == one.state
    assert planned(one.total, sequences=4).state == one.state
    spare = 8 * one.state
    assert one.state < planned(one.total + spare, sequences=4).state <= 2 * one.state
    assert planned(one.total + 100 * spare, sequences=4).state == 4 * one.state
    assert planned(10**9, state_memory=10**7).state > 0.9 * 10**7
    with pytest.raises(InsufficientMemoryError, match="smaller state_memory"):
        planned(one.total, state_memory=10**7)


def test_state_grows_by_whole_pages_of_full_layers() -> None:
    spec = tiny_spec(MIXED)
    full = tiny_spec((None,))
    page = PAGE_TOKENS * state_bytes_per_token(full)
    assert state_bytes(spec, 10_001) == state_bytes(spec, 10_000 // 64 * 64 + 64)
    assert state_bytes(spec, 10_048 + 64) - state_bytes(spec, 10_048) == page
    assert state_bytes_per_token(spec) == 3 * state_bytes_per_token(full) == 3 * 2 * 2 * 8 * 4
    assert state_bytes_per_token(spec, "bfloat16") == state_bytes_per_token(spec) // 2


@pytest.mark.parametrize("stored", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("target", [None, "bf16", "f16", "int8"])
def test_weight_bytes_are_what_loading_packs(stored: str, target: str | None) -> None:
    spec = _wide(tiny_spec()) if "q8_0" in (stored, target) or target == "int8" else tiny_spec()
    files = files_of(spec, stored)
    format = None if target is None else get_format(target)
    weights = load_weights(spec, files, NumpyBackend(), format)
    loaded = sum(weights[source].nbytes for source in spec.sources())
    assert weight_bytes(spec, files, format) == loaded


def test_matrices_that_a_format_does_not_fit_stay_as_they_are() -> None:
    spec = tiny_spec()  # 24 columns, and blocks of 32
    files = files_of(spec)
    assert weight_bytes(spec, files, get_format("int8")) == _loaded_bytes(spec, files, "int8")
    assert weight_bytes(spec, files, get_format("int8")) > weight_bytes(spec, files) // 2


def _loaded_bytes(spec: ModelSpec, files: Any, target: str) -> int:
    weights = load_weights(spec, files, NumpyBackend(), get_format(target))
    return sum(weights[source].nbytes for source in spec.sources())


def _wide(spec: ModelSpec) -> ModelSpec:
    """The spec with every dimension a multiple of 32, as blocks need it."""
    from dataclasses import fields, is_dataclass, replace

    from firstlight.model.tensor_source import TensorSource

    def widened(part: Any) -> Any:
        if isinstance(part, TensorSource):
            return replace(part, shape=tuple(-(-size // 32) * 32 for size in part.shape))
        if isinstance(part, tuple):
            return tuple(map(widened, part))
        if is_dataclass(part) and not isinstance(part, type):
            changes = {field.name: widened(getattr(part, field.name)) for field in fields(part)}
            return replace(part, **changes)
        return part

    wide: ModelSpec = widened(spec)
    return wide


def test_the_plan_adds_up_and_a_larger_step_needs_more() -> None:
    spec = tiny_spec()
    plan = plan_memory(spec, files_of(spec), 5000)
    assert plan.total == plan.weights + plan.state + plan.activations
    assert plan.activations == activation_bytes(spec)
    larger = plan_memory(spec, files_of(spec), 5000, token_budget=2000)
    assert larger.activations > plan.activations
    assert larger.state > plan.state
    # Four rows of each token's widest layer and of the residual stream, and two of logits.
    assert plan.activations == 4 * (512 * 4 * (40 + 24) + 2 * VOCABULARY)


@pytest.mark.parametrize(
    "options",
    [
        {"context_length": 0},
        {"context_length": -5},
        {"sequences": 0},
        {"token_budget": 0},
        {"state_dtype": "int3"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    spec = tiny_spec()
    with pytest.raises(RequestError, match=next(iter(options)).removesuffix("_dtype")):
        plan_memory(spec, files_of(spec), **{"context_length": 64, **options})


# The context length that fits -----------------------------------------------------------

SPEC = tiny_spec(MIXED, context_length=4096)
FILES = files_of(SPEC)


def plan_of(length: int) -> MemoryPlan:
    return plan_memory(SPEC, FILES, length)


LEAST, MOST = plan_of(1).total, plan_of(4096).total


def test_the_models_own_context_where_it_fits() -> None:
    assert fit_context(SPEC, plan_of, MOST, None, "tiny") == plan_of(4096)
    assert fit_context(SPEC, plan_of, MOST, 100, "tiny") == plan_of(100)
    assert fit_context(SPEC, plan_of, 1 << 40, 9000, "tiny") == plan_of(9000)


@given(st.integers(LEAST, MOST - 1))
def test_else_the_longest_that_fits(available: int) -> None:
    plan = fit_context(SPEC, plan_of, available, None, "tiny")
    assert plan.context_length % PAGE_TOKENS == 0
    assert plan.total <= available
    assert plan_of(plan.context_length + 1).total > available


@given(st.integers(0, LEAST - 1), st.one_of(st.none(), st.integers(1, 5000)))
def test_a_model_too_large_for_any_context_is_refused(available: int, wanted: int | None) -> None:
    with pytest.raises(InsufficientMemoryError) as refusal:
        fit_context(SPEC, plan_of, available, wanted, "the model")
    message = str(refusal.value)
    assert message.startswith(f"the model: it needs {gibibytes(LEAST)} of memory")
    assert f"{gibibytes(available)} is available" in message
    assert "--weights int4" in message


@given(st.integers(LEAST, MOST - 1))
def test_a_wanted_context_that_does_not_fit_is_refused_with_the_one_that_does(
    available: int,
) -> None:
    longest = fit_context(SPEC, plan_of, available, None, "tiny").context_length
    wanted = longest + 1
    with pytest.raises(InsufficientMemoryError) as refusal:
        fit_context(SPEC, plan_of, available, wanted, "the model")
    message = str(refusal.value)
    assert f"a context of {wanted} tokens needs {gibibytes(plan_of(wanted).total)}" in message
    assert f"Use a context of at most {longest} tokens, or --state bfloat16" in message
    assert fit_context(SPEC, plan_of, available, longest, "tiny").context_length == longest


def test_bfloat16_state_is_not_offered_where_it_is_in_use() -> None:
    def rounded(length: int) -> MemoryPlan:
        return replace(plan_of(length), state_dtype="bfloat16")

    with pytest.raises(InsufficientMemoryError) as refusal:
        fit_context(SPEC, rounded, LEAST, SPEC.context_length, "the model")
    assert "Use a context of at most" in str(refusal.value)
    assert "--state" not in str(refusal.value)


def test_a_context_shorter_than_a_page() -> None:
    spec = tiny_spec(MIXED, context_length=20)
    files = files_of(spec)

    def plan(length: int) -> MemoryPlan:
        return plan_memory(spec, files, length)

    full = plan(20)
    assert fit_context(spec, plan, full.total, None, "tiny") == full
    with pytest.raises(InsufficientMemoryError):
        fit_context(spec, plan, full.total - 1, None, "tiny")


@pytest.mark.parametrize("wanted", [0, -1])
def test_no_context_is_no_wish(wanted: int) -> None:
    with pytest.raises(RequestError, match="context_length"):
        fit_context(SPEC, plan_of, 1 << 40, wanted, "tiny")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MiB"), (3 << 19, "1.5 MiB"), (1 << 28, "0.25 GiB"), (7 << 29, "3.50 GiB")],
)
def test_bytes_as_people_read_them(count: int, text: str) -> None:
    assert gibibytes(count) == text
