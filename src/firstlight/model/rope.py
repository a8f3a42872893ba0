"""The angles of rotary position embedding, in all its variants, as a table per step.

Frequencies are made on the host: a step needs one row of cosines and sines per token, which is
little beside anything else, and so no backend needs to know the variants.

Two variants make a position's frequencies depend on how long its sequence is. State that is
addressed by position must not change when tokens are added, so "how long" is fixed per row
by the engine: the length of the prompt, or the position's own where that is longer. `replay_length`
says where a model needs its whole state made anew instead.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats
from firstlight.model.rope_spec import (
    DynamicScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeSpec,
    YarnScaling,
)
from firstlight.model.spec import ModelSpec

Integers = NDArray[np.int32]


def cosines_and_sines(rope: RopeSpec, positions: Integers, lengths: Integers) -> Floats:
    """The table that the op `rotary` takes.

    Args:
        positions: int32 [n].
        lengths: int32 [n]: the sequence length in force for each row's frequencies.

    Returns:
        float32 [n, 2, rope.size / 2]: cosines, then sines. The angle itself is a float32 product
        of position and float32 frequency, as in the implementations that models are trained
        with; at large positions its rounding is part of what the model learnt.
    """
    groups = _frequency_groups(rope, lengths)
    if groups is None:
        return _table(rope, 0, positions)
    table = np.empty((len(positions), 2, rope.size // 2), np.float32)
    for length in np.unique(groups):
        chosen = groups == length
        table[chosen] = _table(rope, int(length), positions[chosen])
    return table


class AngleTable(NamedTuple):
    """One of the tables that layers ask for.

    Attributes:
        stride: of runs, for the first positions of these; 0: of every row at its position.
        back: whether it turns back what the same table without it turns.
    """

    rope: RopeSpec
    stride: int = 0
    back: bool = False

    def values(self, positions: Integers, lengths: Integers) -> Floats:
        """As `cosines_and_sines`; with a stride, of the runs that the positions are in."""
        firsts = positions - positions % np.int32(self.stride) if self.stride else positions
        table = cosines_and_sines(self.rope, firsts, lengths)
        return table * np.array([1, -1], np.float32)[:, None] if self.back else table


def frequency_regime(spec: ModelSpec, length: int) -> tuple[int, ...]:
    """What the frequencies of a sequence depend on beside positions.

    Where a row's length in force is max(length, its position + 1), sequences of equal tokens have
    equal state if this is equal. Empty where no rope of the model depends on a length.
    """
    lengths = np.array([length], np.int32)
    groups = (_frequency_groups(rope, lengths) for rope in spec.ropes())
    return tuple(int(group[0]) for group in groups if group is not None)


def _table(rope: RopeSpec, length: int, positions: Integers) -> Floats:
    """The table of positions whose frequencies are those of one length."""
    frequencies, magnitude = inverse_frequencies(rope, length)
    wide = np.multiply.outer(positions.astype(np.float32), frequencies).astype(np.float64)
    table = np.empty((len(positions), 2, len(frequencies)), np.float32)
    table[:, 0] = np.cos(wide) * magnitude
    table[:, 1] = np.sin(wide) * magnitude
    return table


def replay_length(spec: ModelSpec) -> int | None:
    """Length at which a growing sequence's whole state changes and is made anew, or None."""
    lengths = [
        rope.scaling.original_length
        for rope in spec.ropes()
        if isinstance(rope.scaling, LongRopeScaling)
    ]
    return min(lengths, default=None)


# A step asks for those of each rope; with dynamic scaling, of the length of each row as well.
@lru_cache(maxsize=64)
def inverse_frequencies(rope: RopeSpec, length: int) -> tuple[Floats, float]:
    """(float32 [rope.size / 2] angles per position, factor of cosines and sines) at a length.

    Computed in float32 step by step, in the order of the implementations that models are trained
    with: at large positions a frequency's last bit moves the angle visibly.
    """
    base = np.reciprocal(_wavelengths(rope.theta, rope.size))
    magnitude = 1.0
    match rope.scaling:
        case None:
            scaled = base
        case LinearScaling(factor):
            scaled = base / np.float32(factor)
        case FactorScaling(factors):
            scaled = base / np.asarray(factors, np.float32)
        case DynamicScaling(factor, original_length):
            growth = factor * max(length, original_length) / original_length - (factor - 1)
            theta = rope.theta * math.pow(growth, rope.size / (rope.size - 2))
            scaled = np.reciprocal(_wavelengths(theta, rope.size))
        case Llama3Scaling() as scaling:
            scaled = _llama3(base, scaling)
        case YarnScaling() as scaling:
            scaled, magnitude = _yarn(rope, scaling), scaling.magnitude
        case LongRopeScaling() as scaling:
            longer = length > scaling.original_length
            factors = scaling.long_factors if longer else scaling.short_factors
            stretched = np.asarray(factors, np.float32) * _wavelengths(rope.theta, rope.size)
            scaled, magnitude = np.reciprocal(stretched), scaling.magnitude
    scaled = scaled.astype(np.float32)
    scaled.flags.writeable = False
    return scaled, magnitude


def _wavelengths(theta: float, size: int) -> Floats:
    """float32 [size / 2]: theta ** (2i / size), positions per radian."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _frequency_groups(rope: RopeSpec, lengths: Integers) -> Integers | None:
    """Rows with equal entries have equal frequencies; the entry is a length that gives them. None:
    the length does not matter."""
    match rope.scaling:
        case DynamicScaling(_, original_length):
            longest = int(np.iinfo(np.int32).max)
            return np.maximum(lengths, min(original_length, longest)).astype(np.int32)
        case LongRopeScaling() as scaling:
            longer = lengths > scaling.original_length
            return np.where(longer, scaling.original_length + 1, 0).astype(np.int32)
        case _:
            return None


def _llama3(base: Floats, scaling: Llama3Scaling) -> Floats:
    """Long wavelengths divided by the factor, short ones kept, those between blended."""
    turns = np.float32(scaling.original_length) / (np.float32(2 * math.pi) / base)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1, dtype=np.float32)
    blended: Floats = (1 - blend) * base / np.float32(scaling.factor) + blend * base
    return blended


def _yarn(rope: RopeSpec, scaling: YarnScaling) -> Floats:
    """Interpolated and original frequencies, mixed along the dimensions by a ramp."""

    def dimension(turns: float) -> float:
        wavelengths = scaling.original_length / (turns * 2 * math.pi)
        return rope.size * math.log(wavelengths) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    dimensions = np.arange(rope.size // 2, dtype=np.float32)
    ramp = (dimensions - np.float32(low)) / np.float32((high - low) or 0.001)
    original = 1 - np.clip(ramp, 0, 1, dtype=np.float32)
    wavelengths = _wavelengths(rope.theta, rope.size)
    interpolated = np.reciprocal(np.float32(scaling.factor) * wavelengths)
    mixed: Floats = interpolated * (1 - original) + np.reciprocal(wavelengths) * original
    return mixed
