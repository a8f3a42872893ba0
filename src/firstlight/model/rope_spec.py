"""Rotary position embeddings as data: what turns, and how frequencies change for longer contexts.

`model/rope.py` makes angles of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Base frequency that grows with the sequence's length past `original_length` ("dynamic NTK").

    The length is the longer of the prompt and the position's own: see `model.rope`.
    """

    factor: float
    original_length: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), equations 17 to 25.

    Attributes:
        magnitude: factor of cosines and sines; 0.1 * ln(factor) + 1 unless the config says.
        truncate: round the correction range to whole dimensions.
    """

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    magnitude: float
    truncate: bool = True


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling by wavelength (Grattafiori et al. 2024, arXiv:2407.21783)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a factor for each frequency.

    `short_factors` serve while a sequence is at most `original_length` long, `long_factors` for
    the whole sequence as soon as it is longer.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    magnitude: float


@dataclass(frozen=True)
class FactorScaling:
    """Each frequency divided by a factor that the checkpoint lists (GGUF's `rope_freqs`)."""

    factors: tuple[float, ...]


RopeScaling = (
    LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling | FactorScaling
)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding of one layer (Su et al. 2021, arXiv:2104.09864).

    Attributes:
        size: how many of a head's values turn; fewer than all where rotation is partial.
        theta: base of the frequencies theta ** (-2i / size).
        scaling: how frequencies are changed for longer contexts; None: not.
        interleaved: pairs are neighbours (2i, 2i + 1) instead of (i, i + size / 2).
    """

    size: int
    theta: float
    scaling: RopeScaling | None = None
    interleaved: bool = False
