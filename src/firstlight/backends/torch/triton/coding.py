"""Which storage formats products decode in registers, and how columns lie in what is read at once.

A product goes through a row of a weight chunk by chunk. The codes of a chunk lie in neighbouring
bytes; where two codes share a byte the chunk has two parts, one for each nibble, whose columns lie
`distance` apart. All values of a part have one scale. `decoders.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from firstlight.backends.torch.matrix import DeviceMatrix, DeviceScales
from firstlight.formats.base import Format
from firstlight.formats.registry import get_format
from firstlight.ops.rounding import Rounding, RoundingOf


@dataclass(frozen=True)
class Coding:
    """How a product reads one format.

    Attributes:
        name: the format's.
        values: of one part of a chunk, a power of two and at least 16.
        parts: of a chunk.
        distance: columns from one part to the next.
        scaled: "each": values are products of code and scale; "folded": so few bits that bfloat16
            holds that product exactly; "none": the code is the value.
        shares_scale: whether the parts of a chunk have one scale.
        minimum: whether something is added to the product.
        block_bytes, block_chunks: of the format's blocks; 0 chunks: blocks are single values.
        together: neighbouring codes that a thread can read at once, as far as blocks are aligned.
    """

    name: str
    values: int
    parts: int = 1
    distance: int = 0
    scaled: str = "each"
    shares_scale: bool = True
    minimum: bool = False
    block_bytes: int = 1
    block_chunks: int = 0
    together: int = 2

    def chunks(self, columns: int) -> int:
        """Chunks of a row of so many columns; the last may be cut short if blocks are single."""
        return -(-columns // (self.values * self.parts))

    def row_blocks(self, columns: int) -> int:
        """What a row's number is multiplied by to have that of its first block."""
        return self.chunks(columns) // self.block_chunks if self.block_chunks else columns


def _blocks(name: str, values: int, chunks: int, **more: object) -> Coding:
    coding = Coding(name, values, block_bytes=get_format(name).block_bytes, block_chunks=chunks)
    return replace(coding, **more)  # type: ignore[arg-type]


def _nibbles(name: str, **more: object) -> Coding:
    return _blocks(name, 16, 1, parts=2, distance=16, **more)


_CODINGS = (
    Coding("bf16", 64, scaled="none", together=8),
    Coding("f8_e4m3", 64, scaled="none", together=8),
    _blocks("q8_0", 32, 1),
    _nibbles("q4_0"),
    _nibbles("q4_1", minimum=True, together=4),
    _nibbles("q5_0"),
    _nibbles("q5_1", minimum=True, together=4),
    _nibbles("mxfp4", scaled="folded", together=1),
    _blocks("nvfp4", 16, 4, scaled="folded"),
    _blocks("q4_k", 32, 4, parts=2, distance=32, shares_scale=False, minimum=True, together=8),
    _blocks("q5_k", 32, 4, parts=2, distance=32, shares_scale=False, minimum=True, together=8),
    _blocks("q6_k", 16, 8, parts=2, distance=64, shares_scale=False),
)
CODINGS: Mapping[str, Coding] = {coding.name: coding for coding in _CODINGS}
"""By the format's name."""

# Values of a part of single values: few enough for what a chip's threads can share, many for few
# additions.
_LEAST_VALUES, _MOST_VALUES = 16, 64


def coding_of(weight: DeviceMatrix) -> Coding | None:
    """How products read a weight; None where they do not: its format, or the blocks of its scales.

    A weight of single values with scales has chunks that lie within the blocks of the scales.
    """
    coding = CODINGS.get(weight.format.name)
    if coding is None or weight.scales is None:
        return coding
    scales = weight.scales
    if coding.block_chunks or coding.name == "bf16" or not isinstance(scales, DeviceScales):
        return None
    values = _within(scales, weight.columns)
    return None if values is None else replace(coding, values=values, scaled="each")


def _within(scales: DeviceScales, columns: int) -> int | None:
    """Values of a chunk that has one scale: a power of two."""
    if scales.columns >= columns:
        return _MOST_VALUES
    values = scales.columns & -scales.columns
    return min(values, _MOST_VALUES) if values >= _LEAST_VALUES else None


def rounding_of(bfloat16: bool) -> RoundingOf:
    """How products with weights of a format round their activations: to bfloat16 for all formats
    above, for bfloat16 itself where that is said."""

    def rounding(format: Format) -> Rounding:
        rounds = format.name in CODINGS and (bfloat16 or format.name != "bf16")
        return "bfloat16" if rounds else "none"

    return rounding
