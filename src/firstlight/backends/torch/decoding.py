"""Decoding of weights on the device: bytes of blocks to float32, bit for bit as formats/ does it.

Every decoder takes uint8 [blocks, block_bytes] on any device and gives float32 [blocks,
block_values] there. Layouts are explained in formats/; the order of float32 operations is the
same, so that results are equal. Integers are put together from single bytes, since not every
device has wider unsigned types, nor views at odd addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from firstlight.backends.torch.code_fields import (
    fields,
    half,
    look_up,
    nibbles_apart,
    nibbles_in_turn,
    scaled,
    table,
    words16,
)
from firstlight.backends.torch.codebooks import CODEBOOKS
from firstlight.formats.base import Floats
from firstlight.formats.codes import E2M1, pack_nibbles
from firstlight.formats.iq4 import LEVELS
from firstlight.formats.registry import get_format

Decoder = Callable[[torch.Tensor], torch.Tensor]

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""Formats of single values that PyTorch has as types of its own."""


# 32 values with one scale ------------------------------------------------------------------


def _five_bits(high: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    fifth = fields(high, tuple(range(8)), 1)
    return nibbles_apart(codes) | fifth << 4


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (nibbles_apart(blocks[:, 2:]).float() - 8) * half(blocks, 0)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return nibbles_apart(blocks[:, 4:]).float() * half(blocks, 0) + half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_five_bits(blocks[:, 2:6], blocks[:, 6:]).float() - 16) * half(blocks, 0)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    return _five_bits(blocks[:, 4:8], blocks[:, 8:]).float() * half(blocks, 0) + half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * half(blocks, 0)


# k-quants ----------------------------------------------------------------------------------


def _six_bit_pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first_scales, first_minima, nibbles = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    last_scales = (nibbles & 15) | (first_scales >> 2 & 0x30)
    last_minima = (nibbles >> 4) | (first_minima >> 2 & 0x30)
    scales = torch.cat((first_scales & 63, last_scales), 1)
    minima = torch.cat((first_minima & 63, last_minima), 1)
    return scales.float(), minima.float()


def _less_minima(codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """codes [blocks, 256] times scales, less minima, both [blocks, groups]."""
    runs = codes.float().reshape(*scales.shape, -1)
    return (runs * scales[:, :, None] - minima[:, :, None]).flatten(1)


def _planes(codes: torch.Tensor) -> torch.Tensor:
    """Codes of two bits, uint8 [blocks, 64] -> [blocks, 2, 4, 32]: four planes of each half."""
    halves = codes.reshape(-1, 2, 32)
    return torch.stack([halves >> (2 * plane) & 3 for plane in range(4)], 2)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    pairs = blocks[:, :16]
    scales = half(blocks, 80) * (pairs & 15).float()
    minima = half(blocks, 82) * (pairs >> 4).float()
    return _less_minima(_planes(blocks[:, 16:80]).flatten(1), scales, minima)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    high = torch.stack([blocks[:, :32] >> plane & 1 for plane in range(8)], 1).int()
    codes = _planes(blocks[:, 32:96]).reshape(-1, 8, 32).int() - (1 - high) * 4
    packed = blocks[:, 96:108]
    low = nibbles_apart(packed[:, :8])
    top = torch.cat([packed[:, 8:] >> (2 * part) & 3 for part in range(4)], 1)
    scales = (low | top << 4).float() - 32
    return scaled(codes.flatten(1).float(), half(blocks, 108) * scales)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    codes = nibbles_apart(blocks[:, 16:].reshape(-1, 4, 32)).flatten(1)
    return _less_minima(codes, half(blocks, 0) * scales, half(blocks, 2) * minima)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    low = nibbles_apart(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = torch.stack([blocks[:, 16:48] >> bit & 1 for bit in range(8)], 1)
    codes = (low | fifth << 4).flatten(1)
    return _less_minima(codes, half(blocks, 0) * scales, half(blocks, 2) * minima)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = torch.cat((low & 15, low >> 4), 2)
    halves = blocks[:, 128:192].reshape(-1, 2, 32)
    top = torch.stack([halves >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    codes = (low | top << 4).flatten(1).float() - 32
    return scaled(codes, half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float())


# Four-bit floating point, levels, ternary values ------------------------------------------------


def _levels_of(name: str, blocks: np.ndarray, column: int) -> Floats:
    """What formats/ makes of one value in each of several blocks made for the purpose."""
    return np.ascontiguousarray(get_format(name).decode(blocks)[:, column])


def _four_bit_values() -> Floats:
    """Of each code of mxfp4, where the scale is one: twice the value, at half a scale of two."""
    blocks = np.zeros((16, 17), np.uint8)
    blocks[:, 0], blocks[:, 1] = 128, np.arange(16)
    return _levels_of("mxfp4", blocks, 0)


def _half_e8m0() -> Floats:
    """Half of each scale of mxfp4, which is the value of code 1."""
    blocks = np.ones((256, 17), np.uint8)
    blocks[:, 0] = np.arange(256)
    return _levels_of("mxfp4", blocks, 0)


def _half_ue4m3() -> Floats:
    """Half of each scale of nvfp4."""
    blocks = np.ones((256, 36), np.uint8)
    blocks[:, 0] = np.arange(256)
    return _levels_of("nvfp4", blocks, 0)


def _mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    device = blocks.device
    values = look_up(table("four bits", device, _four_bit_values), nibbles_apart(blocks[:, 1:]))
    return values * look_up(table("half e8m0", device, _half_e8m0), blocks[:, :1])


def _nvfp4(blocks: torch.Tensor) -> torch.Tensor:
    device = blocks.device
    codes = nibbles_apart(blocks[:, 4:].reshape(-1, 4, 8)).flatten(1)
    values = look_up(table("four bits", device, _four_bit_values), codes)
    return scaled(values, look_up(table("half ue4m3", device, _half_ue4m3), blocks[:, :4]))


def _levels(codes: torch.Tensor) -> torch.Tensor:
    return look_up(table("iq4 levels", codes.device, lambda: LEVELS), codes)


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return _levels(nibbles_apart(blocks[:, 2:])) * half(blocks, 0)


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    low = nibbles_in_turn(blocks[:, 4:8])
    top = fields(words16(blocks[:, 2:4]), tuple(range(0, 16, 2)), 3)
    scales = (low | top << 4).float() - 32
    codes = nibbles_apart(blocks[:, 8:].reshape(-1, 8, 16)).flatten(1)
    return scaled(_levels(codes), half(blocks, 0) * scales)


def _tq1_0(blocks: torch.Tensor) -> torch.Tensor:
    parts, byte = [], 0
    for width, count in ((32, 5), (16, 5), (4, 4)):
        held = blocks[:, byte : byte + width].int()
        parts += [((held * 3**digit & 255) * 3 >> 8) - 1 for digit in range(count)]
        byte += width
    return torch.cat(parts, 1).float() * half(blocks, 52)


def _tq2_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_planes(blocks[:, :64]).flatten(1).float() - 1) * half(blocks, 64)


def _f8_e4m3(blocks: torch.Tensor) -> torch.Tensor:
    return look_up(table("e4m3", blocks.device, _e4m3_values), blocks)


def _e4m3_values() -> Floats:
    return get_format("f8_e4m3").decode(np.arange(256, dtype=np.uint8))


# Bare codes, whose scales lie elsewhere --------------------------------------------------------


def _u4(blocks: torch.Tensor) -> torch.Tensor:
    return nibbles_in_turn(blocks).float()


def _u8(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.float()


def _e2m1(blocks: torch.Tensor) -> torch.Tensor:
    return look_up(table("e2m1", blocks.device, _e2m1_values), nibbles_in_turn(blocks))


def _e2m1_values() -> Floats:
    codes = np.arange(16, dtype=np.uint8)
    return E2M1.decode(pack_nibbles(codes))


@cache
def block_decoders() -> dict[str, Decoder]:
    """The formats, other than PLAIN, that are decoded on the device."""
    return {
        "q4_0": _q4_0,
        "q4_1": _q4_1,
        "q5_0": _q5_0,
        "q5_1": _q5_1,
        "q8_0": _q8_0,
        "q2_k": _q2_k,
        "q3_k": _q3_k,
        "q4_k": _q4_k,
        "q5_k": _q5_k,
        "q6_k": _q6_k,
        "mxfp4": _mxfp4,
        "nvfp4": _nvfp4,
        "iq4_nl": _iq4_nl,
        "iq4_xs": _iq4_xs,
        "tq1_0": _tq1_0,
        "tq2_0": _tq2_0,
        "f8_e4m3": _f8_e4m3,
        "u4": _u4,
        "u8": _u8,
        "e2m1": _e2m1,
        **CODEBOOKS,
    }
