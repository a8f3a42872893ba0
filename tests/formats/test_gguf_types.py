"""Decoding and encoding of every GGUF type, against the `gguf` package bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgufType
from gguf.quants import _type_traits as gguf_codecs

from firstlight.errors import FormatError
from firstlight.formats.codebook_data import codebook
from firstlight.formats.registry import REFUSED, get_format, known_formats

DECODABLE = [GgufType.F32, GgufType.F16, *gguf_codecs]
ENCODABLE = [GgufType.Q4_0, GgufType.Q4_1, GgufType.Q5_0, GgufType.Q5_1, GgufType.Q8_0]

# The unit of work inside firstlight is a piece of some 32768 values: cover several and a rest.
BLOCKS = {32: 5000, 64: 2500, 256: 1000, 1: 70001}


def by_name(types: list[GgufType]) -> list[object]:
    return [pytest.param(type, id=type.name.lower()) for type in types]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal as bit patterns, any NaN equal to any other."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    same = actual.view(np.uint32) == expected.view(np.uint32)
    same |= np.isnan(actual) & np.isnan(expected)
    wrong = np.argwhere(~same)
    assert not len(wrong), f"{len(wrong)} differ, first at {wrong[0]}"


def dequantize(data: np.ndarray, type: GgufType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(data, type)


@pytest.mark.parametrize("type", by_name(list(GgufType)))
def test_every_type_is_known_with_its_size_or_refused_with_a_reason(type: GgufType) -> None:
    name = type.name.lower()
    if type in DECODABLE or type is GgufType.F64:
        format = get_format(name)
        assert (format.block_values, format.block_bytes) == gguf.GGML_QUANT_SIZES[type]
    else:
        with pytest.raises(
            FormatError, match=f"storage format '{name}'.*does not read it"
        ) as error:
            get_format(name)
        assert REFUSED[name] in str(error.value)


def test_there_is_no_format_that_gguf_does_not_vouch_for() -> None:
    """f8_e4m3 is no type of GGUF's; test_float8.py holds it to PyTorch's."""
    others = {"f64", "f8_e4m3"}
    assert set(known_formats()) == {type.name.lower() for type in DECODABLE} | others


@pytest.mark.parametrize("type", by_name(DECODABLE))
def test_decoding_random_bytes(type: GgufType) -> None:
    format = get_format(type.name)
    shape = (BLOCKS[format.block_values], format.block_bytes)
    data = np.random.default_rng(type).integers(0, 256, shape, dtype=np.uint8)
    data.flags.writeable = False
    expected = dequantize(data, type)
    assert_same_bits(format.decode(data), expected)
    if type not in (GgufType.MXFP4, GgufType.NVFP4):  # their scales have no infinity
        assert not np.isfinite(expected).all()


@pytest.mark.parametrize("type", by_name(DECODABLE))
def test_decoding_blocks_of_extreme_bytes(type: GgufType) -> None:
    """Every scale field takes 0, -0, subnormals, infinity and NaN, and codes their end values."""
    format = get_format(type.name)
    generator = np.random.default_rng(type)
    extremes = np.array([0x00, 0x01, 0x03, 0x7C, 0x7E, 0x7F, 0x80, 0x81, 0xFC, 0xFF], np.uint8)
    data = generator.choice(extremes, (400, format.block_bytes))
    constant = np.repeat(np.arange(256, dtype=np.uint8)[:, None], format.block_bytes, axis=1)
    data = np.concatenate([data, constant])
    assert_same_bits(format.decode(data), dequantize(data, type))


@pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
def test_code_books(name: str) -> None:
    codec = gguf_codecs[GgufType[name.upper()]]
    codec.init_grid()
    book = codebook("iq1" if name == "iq1_s" else name)
    assert np.array_equal(book, codec.grid.reshape(codec.grid_shape))
    assert not book.flags.writeable


def sample_values(seed: int) -> np.ndarray:
    """[rows, 160] of many sizes, with zeros, constants, ties, one-sided rows and single peaks."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((1200, 160), dtype=np.float32)
    values *= np.exp(generator.uniform(-8, 6, (1200, 1))).astype(np.float32)
    values[0] = 0
    values[1] = -0.0
    values[2, 32:64] = 0
    values[3] = 0.37
    values[4] = -0.37
    values[5] = np.abs(values[5])
    values[6] = -np.abs(values[6])
    values[7] = np.tile([2.0, -2.0], 80)  # two extremes of one size: the first one decides
    values[8] = np.tile([-2.0, 2.0], 80)
    values[9] = np.resize(np.arange(-127, 128) / 2, 160)  # halves: rounding ties
    values[10] = np.resize(np.arange(0, 31) / 2, 160)
    values[11] = 0
    values[11, ::32] = -5.0
    values[12] = 1000.0 + generator.standard_normal(160)
    return values


@pytest.mark.parametrize("type", by_name(ENCODABLE))
def test_encoding(type: GgufType) -> None:
    values = sample_values(type)
    expected = gguf.quantize(values, type)
    encoded = get_format(type.name).encode(values)
    assert encoded.dtype == np.uint8
    assert np.array_equal(encoded, expected)


@pytest.mark.parametrize("type", by_name(ENCODABLE))
def test_encoding_is_as_close_as_its_codes_allow(type: GgufType) -> None:
    """Half a step, plus what rounding scale and minimum to float16 can add."""
    values = sample_values(100 + type)
    format = get_format(type.name)
    decoded = format.decode(format.encode(values))
    blocks, error = (a.reshape(-1, 32) for a in (values, np.abs(decoded - values)))
    steps = {"q4_0": 8, "q4_1": 15, "q5_0": 16, "q5_1": 31, "q8_0": 127}[format.name]
    size = np.abs(blocks).max(axis=1)
    reach = np.ptp(blocks, axis=1) if format.name.endswith("_1") else size
    # A range of -m to m in 2n codes ends one code short on the one side: there a whole step.
    worst_steps = 1.0 if format.name in ("q4_0", "q5_0") else 0.5
    half_rounding = 2.0**-11 * (reach + size) + 2.0**-25 * (steps * 2 + 1)
    assert (error.max(axis=1) <= worst_steps * reach / steps * 1.0001 + half_rounding).all()


@pytest.mark.parametrize("type", by_name(ENCODABLE))
@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-30, 1e-12])
def test_values_below_the_smallest_scale_become_almost_zero(type: GgufType, size: float) -> None:
    format = get_format(type.name)
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    values = (values * size).astype(np.float32)
    assert np.abs(format.decode(format.encode(values))).max() <= size * 10


@pytest.mark.parametrize("type", by_name(ENCODABLE))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_values_beyond_the_scale_are_refused(type: GgufType, bad: float) -> None:
    values = np.zeros((3, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(FormatError, match="not finite, or too large"):
        get_format(type.name).encode(values)


def test_every_encoder_is_among_those_compared_with_gguf() -> None:
    """Plain formats apart, which test_plain.py compares with PyTorch."""
    encodable = {name for name in known_formats() if get_format(name).encode is not None}
    proven = {type.name.lower() for type in ENCODABLE}
    assert encodable == proven | {"f64", "f32", "f16", "bf16"}
