"""Rotary frequencies of every scaling are those of transformers, at the sizes of real models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from firstlight.model.families.config import Config
from firstlight.model.families.parts import Parts
from firstlight.model.families.rope import rope_spec
from firstlight.model.rope import cosines_and_sines, inverse_frequencies
from firstlight.model.rope_spec import FactorScaling, RopeSpec

# Powers may differ in their last bit, 2 ** -23, and what follows from it by one more.
FREQUENCY_TOLERANCE = 2 * 2**-23


@dataclass(frozen=True)
class Variant:
    """A scaling as configs write it.

    Attributes:
        head_size: a head's values, all of which turn but for `partial_rotary_factor`.
        lengths: sequence lengths that may make a difference.
    """

    name: str
    parameters: dict[str, Any]
    head_size: int = 128
    context: int = 32_768
    lengths: tuple[int, ...] = (1,)


def _ramp(count: int, last: float) -> list[float]:
    return [float(factor) for factor in np.geomspace(1.0, last, count)]


VARIANTS = (
    Variant("plain", {"rope_type": "default", "rope_theta": 10_000.0}, 80),
    Variant("plain, large base", {"rope_type": "default", "rope_theta": 1e6}, 256),
    Variant("linear", {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, 256),
    Variant(
        "dynamic",
        {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        context=4096,
        lengths=(1, 4096, 4097, 9000, 100_000),
    ),
    Variant(
        "Llama 3.1",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500_000.0,
        },
        context=131_072,
    ),
    Variant(
        "Llama 3.2",
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500_000.0,
        },
        head_size=64,
        context=131_072,
    ),
    Variant(
        "YaRN",
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32_768,
            "rope_theta": 1e6,
        },
    ),
    Variant(
        "YaRN with everything",
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
            "truncate": False,
        },
        head_size=64,
    ),
    Variant(
        "YaRN with its magnitude given",
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
            "attention_factor": 1.5,
        },
    ),
    Variant(
        "YaRN of so short a length that the ramp is upside down",
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "rope_theta": 10_000.0,
        },
        head_size=16,
    ),
    Variant(
        "LongRoPE",
        {
            "rope_type": "longrope",
            "short_factor": _ramp(48, 2.0),
            "long_factor": _ramp(48, 60.0),
            "original_max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
        },
        head_size=96,
        context=131_072,
        lengths=(1, 4096, 4097, 100_000),
    ),
    Variant(
        "LongRoPE with its magnitude given",
        {
            "rope_type": "longrope",
            "short_factor": _ramp(32, 2.0),
            "long_factor": _ramp(32, 60.0),
            "original_max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
            "factor": 16.0,
            "attention_factor": 1.25,
        },
        head_size=64,
        lengths=(1, 5000),
    ),
    Variant(
        "LongRoPE, partial",
        {
            "rope_type": "longrope",
            "short_factor": _ramp(48, 1.0),
            "long_factor": _ramp(48, 50.0),
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_theta": 10_000.0,
        },
        context=131_072,
        lengths=(4096, 4097),
    ),
)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_frequencies_are_those_of_transformers(variant: Variant) -> None:
    rope = _our_rope(variant)
    config = _their_config(variant)
    for length in variant.lengths:
        found, magnitude = inverse_frequencies(rope, length)
        expected, expected_magnitude = _their_frequencies(config, length)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=FREQUENCY_TOLERANCE, atol=0)
        assert magnitude == pytest.approx(expected_magnitude, rel=1e-12)


@pytest.mark.parametrize(
    "variant",
    [variant for variant in VARIANTS if "partial_rotary_factor" not in variant.parameters],
    ids=lambda variant: variant.name,
)
def test_tables_are_those_of_transformers_far_into_a_context(variant: Variant) -> None:
    """An angle differs by its frequency's relative error and by the rounding of its product."""
    positions = np.array([0, 1, 2, 100, 4095, 4096, 20_000, 99_999], np.int32)
    embedding = LlamaRotaryEmbedding(_their_config(variant))
    cosine, sine = embedding(torch.zeros(1), torch.from_numpy(positions).long()[None])
    lengths = np.full_like(positions, 100_000)
    found = cosines_and_sines(_our_rope(variant), positions, lengths)
    half = found.shape[2]
    magnitude = max(1.0, embedding.attention_scaling)
    frequencies, _ = inverse_frequencies(_our_rope(variant), 100_000)
    angles = positions[:, None] * frequencies.astype(np.float64)
    bound = magnitude * (1e-6 + 1.5 * FREQUENCY_TOLERANCE * angles)
    assert (np.abs(found[:, 0] - cosine[0, :, :half].numpy()) <= bound).all()
    assert (np.abs(found[:, 1] - sine[0, :, :half].numpy()) <= bound).all()


def test_rows_of_one_table_have_frequencies_of_their_own_lengths() -> None:
    """Each row is as it would be in a table of its own, whatever rows stand around it."""
    for variant in VARIANTS:
        rope = _our_rope(variant)
        lengths = np.array([1, 4096, 4097, 9000, 5, 4097], np.int32)
        positions = np.array([0, 17, 4096, 300, 4, 1], np.int32)
        together = cosines_and_sines(rope, positions, lengths)
        for row in range(len(lengths)):
            one = slice(row, row + 1)
            alone = cosines_and_sines(rope, positions[one], lengths[one])
            assert np.array_equal(together[one], alone)


def test_an_empty_table() -> None:
    table = cosines_and_sines(RopeSpec(8, 10_000.0), np.empty(0, np.int32), np.empty(0, np.int32))
    assert table.shape == (0, 2, 4)


def test_factors_divide_frequencies() -> None:
    """GGUF's way to write Llama 3's scaling."""
    plain, _ = inverse_frequencies(RopeSpec(8, 100.0), 1)
    scaled, magnitude = inverse_frequencies(
        RopeSpec(8, 100.0, FactorScaling((1.0, 2.0, 4.0, 8.0))), 1
    )
    assert magnitude == 1.0
    np.testing.assert_array_equal(scaled, plain / np.array([1, 2, 4, 8], np.float32))


def _our_rope(variant: Variant) -> RopeSpec:
    values = {
        "hidden_size": 4 * variant.head_size,
        "num_attention_heads": 4,
        "max_position_embeddings": variant.context,
        "rope_parameters": variant.parameters,
    }
    return rope_spec(Parts(Config("test", values), files=None), partial=True)  # type: ignore[arg-type]


def _their_config(variant: Variant) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * variant.head_size,
        num_attention_heads=4,
        head_dim=variant.head_size,
        max_position_embeddings=variant.context,
        rope_parameters=dict(variant.parameters),
    )


def _their_frequencies(config: LlamaConfig, length: int) -> tuple[np.ndarray, float]:
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        frequencies, magnitude = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
    return frequencies.numpy(), magnitude
