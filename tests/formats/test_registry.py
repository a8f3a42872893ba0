"""Names of formats, and conversion."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from firstlight.errors import FormatError
from firstlight.formats.base import Weight
from firstlight.formats.registry import ALIASES, REFUSED, convert, get_format, known_formats
from tests.support.weights import random_weight


def test_names() -> None:
    names = known_formats()
    assert len(set(names)) == len(names)
    for name in names:
        assert get_format(name).name == name
        assert get_format(name.upper()) is get_format(name)
    assert not set(names) & (set(ALIASES) | set(REFUSED))


def test_aliases() -> None:
    assert get_format("int8") is get_format("q8_0")
    assert get_format("INT4") is get_format("q4_1")
    for name in ALIASES:
        assert get_format(name).encode is not None


@pytest.mark.parametrize(
    ("name", "nearest"), [("q4k", "q4_k"), ("bfloat16", "bf16"), ("int-4", "int4"), ("", None)]
)
def test_an_unknown_name(name: str, nearest: str | None) -> None:
    with pytest.raises(FormatError) as error:
        get_format(name)
    message = str(error.value)
    assert all(known in message for known in known_formats())
    assert nearest is None or f"nearest name is '{nearest}'" in message


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_name_says_why(name: str) -> None:
    with pytest.raises(FormatError) as error:
        get_format(name)
    assert REFUSED[name] in str(error.value)
    assert "q8_0" in error.value.remedy


@pytest.mark.parametrize("source", known_formats())
@pytest.mark.parametrize("target", ["int8", "int4", "bf16", "f32"])
def test_convert_equals_decoding_and_encoding_the_whole(source: str, target: str) -> None:
    weight = random_weight(source, 9, 512, seed=2)
    format = get_format(target)
    result = convert(weight, format)
    assert (result.format, result.shape, result.name) == (format, weight.shape, weight.name)
    assert np.array_equal(result.values(), convert_whole(weight.values(), target))
    if source == format.name:
        assert result is weight


def test_convert_in_several_chunks_and_with_more_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstlight.formats.registry._CONVERTED_VALUES", 200)
    values = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    weight = Weight(get_format("f32"), (2, 5, 64), values.reshape(10, 64).view(np.uint8))
    result = convert(weight, get_format("int8"))
    assert result.shape == (2, 5, 64)
    assert np.array_equal(result.values(), convert_whole(values, "int8"))


def convert_whole(values: np.ndarray, name: str) -> np.ndarray:
    format = get_format(name)
    return format.decode((format.fit or format.encode)(values))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (64,)])
def test_convert_empty_tensors_and_vectors(shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    rows = int(np.prod(shape[:-1]))
    data = values.view(np.uint8).reshape(rows, 4 * shape[-1])
    result = convert(Weight(get_format("f32"), shape, data), get_format("int4"))
    assert result.values().shape == shape
    assert np.array_equal(result.values(), values)


def test_convert_never_holds_the_whole_matrix_as_float32() -> None:
    weight = random_weight("bf16", 8192, 4096)
    whole = 4 * weight.rows * weight.columns
    tracemalloc.start()
    try:
        result = convert(weight, get_format("int8"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < whole // 8


def test_convert_refuses_columns_that_do_not_fill_blocks() -> None:
    weight = Weight(get_format("f32"), (2, 33), np.zeros((2, 132), np.uint8), "blk.0.attn_q")
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q: .*blocks of 32"):
        convert(weight, get_format("int8"))


def test_convert_refuses_a_format_that_is_only_read() -> None:
    with pytest.raises(FormatError, match=r"random bf16.*reads q4_k but does not write it.*int8"):
        convert(random_weight("bf16", 2, 256), get_format("q4_k"))


def test_convert_names_the_tensor_that_holds_nan() -> None:
    values = np.zeros((4, 64), np.float32)
    values[2, 3] = np.nan
    weight = Weight(get_format("f32"), (4, 64), values.view(np.uint8), "model.embed_tokens")
    with pytest.raises(FormatError, match=r"model\.embed_tokens: .*not finite"):
        convert(weight, get_format("int4"))


def test_importing_the_registry_loads_no_code_book() -> None:
    program = (
        "import sys, firstlight.formats.registry\n"
        "print(*(m for m in ('firstlight.formats.codebook_data', 'difflib', 'torch', 'gguf')"
        " if m in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == ""
