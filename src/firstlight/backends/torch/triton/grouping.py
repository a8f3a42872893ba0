"""Which rows go to which expert, in tiles, found out on the device: nothing waits for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Groups:
    """Pairs of a row and an expert in the order of experts, cut into tiles of one expert each.

    How many tiles there are is known to the device only, so there are as many as there could be;
    those too many have no expert.

    Attributes:
        rows: pairs of a tile; its last ones may be missing.
        tiles: how many there are at most.
        experts: int64 [tiles], the expert of each; -1: the tile is one too many.
        starts: int64 [experts + 1], the place of each expert's first pair in `order`.
        first_tiles: int64 [experts], the number of each expert's first tile.
        order: int64 [pairs], the pairs' numbers; those that no expert computes come first.
    """

    rows: int
    tiles: int
    experts: torch.Tensor
    starts: torch.Tensor
    first_tiles: torch.Tensor
    order: torch.Tensor


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """So many tiles of `rows` pairs there can be, however the pairs fall to the experts."""
    return (pairs + min(pairs, experts) * (rows - 1)) // rows


def grouped(chosen: torch.Tensor, experts: int, rows: int) -> Groups:
    """Group pairs by expert.

    Args:
        chosen: int64 [pairs], the expert of each; -1: none.
        experts: how many there are.
        rows: pairs of a tile.
    """
    device = chosen.device
    inner, order = torch.sort(chosen, stable=True)
    starts = torch.searchsorted(inner, torch.arange(experts + 1, device=device))
    needed = torch.div(starts.diff() + (rows - 1), rows, rounding_mode="floor")
    ends = needed.cumsum(0)
    tiles = most_tiles(len(chosen), experts, rows)
    found = torch.searchsorted(ends, torch.arange(tiles, device=device), right=True)
    found = found.masked_fill(found == experts, -1)
    return Groups(rows, tiles, found, starts, ends - needed, order)
