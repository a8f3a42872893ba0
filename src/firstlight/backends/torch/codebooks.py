"""Decoding of GGUF's types with code books on the device; layouts as in formats/codebooks.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from firstlight.backends.torch.code_fields import (
    fields,
    half,
    look_up,
    nibbles_in_turn,
    scaled,
    table,
    words16,
)
from firstlight.formats.base import Floats
from firstlight.formats.codebook_data import codebook

_OF_A_WORD = (0, 7, 14, 21)


def _book(name: str, codes: torch.Tensor) -> torch.Tensor:
    """The rows that codes name, side by side: [blocks, n] -> float32 [blocks, n * row]."""
    return look_up(table(name, codes.device, lambda: codebook(name)), codes).flatten(1)


def _shifted_book() -> Floats:
    eighth = np.float32(0.125)
    return np.concatenate([codebook("iq1") + eighth, codebook("iq1") - eighth])


def _shifted(codes: torch.Tensor) -> torch.Tensor:
    return look_up(table("iq1 shifted", codes.device, _shifted_book), codes).flatten(1)


def _signs(bits: torch.Tensor) -> torch.Tensor:
    """Eight signs of each byte, lowest bit first: [blocks, n] -> float32 [blocks, 8 n]."""
    return 1 - 2 * fields(bits, tuple(range(8)), 1).float()


def _even_signs(bits: torch.Tensor) -> torch.Tensor:
    """Of seven bits, and an eighth that makes the number of minus signs even."""
    parity = bits ^ bits >> 4
    parity = parity ^ parity >> 2
    parity = parity ^ parity >> 1
    return _signs(bits | (parity & 1) << 7)


def _signs_and_scales(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [blocks, 4 n] -> (float32 [blocks, 32 n], int32 [blocks, n]): four times seven signs
    and a scale of four bits in each word."""
    parts = words.reshape(len(words), -1, 4).int()
    low = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16 | (parts[..., 3] & 15) << 24
    return _even_signs(fields(low, _OF_A_WORD, 127)), parts[..., 3] >> 4


def _half_steps(d: torch.Tensor, scales: torch.Tensor, factor: float) -> torch.Tensor:
    return d * (scales.float() + 0.5) * factor


def _odd(d: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return d * (2 * scales.int() + 1).float()


def _iq2_xxs(blocks: torch.Tensor) -> torch.Tensor:
    groups = blocks[:, 2:].reshape(-1, 8, 8)
    signs, scales = _signs_and_scales(groups[:, :, 4:].flatten(1))
    rows = _book("iq2_xxs", groups[:, :, :4].flatten(1))
    return scaled(rows * signs, _half_steps(half(blocks, 0), scales, 0.25))


def _iq2_xs(blocks: torch.Tensor) -> torch.Tensor:
    words = words16(blocks[:, 2:66])
    rows = _book("iq2_xs", words & 511) * _even_signs(words >> 9)
    return scaled(rows, _half_steps(half(blocks, 0), nibbles_in_turn(blocks[:, 66:]), 0.25))


def _iq2_s(blocks: torch.Tensor) -> torch.Tensor:
    codes = blocks[:, 2:34].int() | fields(blocks[:, 66:74].int(), (0, 2, 4, 6), 3) << 8
    rows = _book("iq2_s", codes) * _signs(blocks[:, 34:66])
    return scaled(rows, _half_steps(half(blocks, 0), nibbles_in_turn(blocks[:, 74:]), 0.25))


def _iq3_xxs(blocks: torch.Tensor) -> torch.Tensor:
    signs, scales = _signs_and_scales(blocks[:, 66:])
    rows = _book("iq3_xxs", blocks[:, 2:66]) * signs
    return scaled(rows, _half_steps(half(blocks, 0), scales, 0.5))


def _iq3_s(blocks: torch.Tensor) -> torch.Tensor:
    codes = blocks[:, 2:66].int() | fields(blocks[:, 66:74].int(), tuple(range(8)), 1) << 8
    rows = _book("iq3_s", codes) * _signs(blocks[:, 74:106])
    return scaled(rows, _odd(half(blocks, 0), nibbles_in_turn(blocks[:, 106:])))


def _iq1_s(blocks: torch.Tensor) -> torch.Tensor:
    words = words16(blocks[:, 34:])
    high = fields(words, (0, 3, 6, 9), 7) << 8
    minus = (words >> 15 << 11).repeat_interleave(4, 1)
    rows = _shifted(blocks[:, 2:34].int() | high | minus)
    return scaled(rows, _odd(half(blocks, 0), words >> 12 & 7))


def _iq1_m(blocks: torch.Tensor) -> torch.Tensor:
    words = words16(blocks[:, 48:])
    tops = words >> 12
    low, high = tops[:, :1] | tops[:, 1:2] << 4, tops[:, 2:3] | tops[:, 3:] << 4
    d = half(torch.cat((low, high), 1).to(torch.uint8), 0)
    codes = blocks[:, :32].int() | nibbles_in_turn(blocks[:, 32:48]).int() << 8
    return scaled(_shifted(codes), _odd(d, fields(words, (0, 3, 6, 9), 7)))


CODEBOOKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "iq3_s": _iq3_s,
    "iq3_xxs": _iq3_xxs,
    "iq2_s": _iq2_s,
    "iq2_xs": _iq2_xs,
    "iq2_xxs": _iq2_xxs,
    "iq1_m": _iq1_m,
    "iq1_s": _iq1_s,
}
