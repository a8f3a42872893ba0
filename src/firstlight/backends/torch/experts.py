"""Mixtures of experts on the device: routing, and each needed expert once with all of its rows."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from firstlight.backends.base import Kernel
from firstlight.backends.torch.elementwise import add, clamped_gate, gate, rms_norm
from firstlight.backends.torch.matrix import DeviceMatrix
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.gating import ClampedSwish, Gating
from firstlight.ops.parts import Norm, Product
from firstlight.ops.rounding import RoundingOf
from firstlight.ops.routing import Routing

Integers = NDArray[np.int32]

# Added to a sum that weights are divided by, as ops/routing.py has it.
_LEAST_SUM = 1e-20


class Products(Protocol):
    """What experts need of products."""

    def product(
        self, x: torch.Tensor, weight: DeviceMatrix, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias."""


class ExpertsKernels:
    """The kernels of one device.

    Args:
        rounding: of activations by `products`.
    """

    def __init__(self, transfer: Transfer, products: Products, rounding: RoundingOf) -> None:
        self._transfer = transfer
        self._products = products
        self._rounding = rounding
        self._tables: WeakKeyDictionary[ExpertsBlock, torch.Tensor] = WeakKeyDictionary()

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("route", "sorted", self.route),
            Kernel("experts_block", "grouped", self.experts_block, rounding=self._rounding),
        )

    def route(
        self,
        logits: torch.Tensor,
        routing: Routing,
        correction: torch.Tensor | None = None,
        chosen: Integers | None = None,
    ) -> torch.Tensor:
        places, weights = self._choose(logits, routing, correction, chosen)
        return torch.zeros_like(logits).scatter_add_(1, places, weights)

    def experts_block(
        self, x: torch.Tensor, block: ExpertsBlock, token_ids: Integers
    ) -> torch.Tensor:
        """One wait for the device, to learn which experts are needed."""
        normed = _norm(x, block.pre_norm)
        places, weights = self.choose_for(normed, block, token_ids)
        out = self._experts(normed, block, places, weights)
        if block.shared is not None:
            shared = self.expert(normed, block.shared, block.gating)
            if block.shared_gate is not None:
                shared = torch.sigmoid(self.product(normed, block.shared_gate)) * shared
            out = out + shared
        out = _norm(out, block.post_norm)
        return out if block.residual_scale is None else add(x, out, block.residual_scale)

    def choose_for(
        self, normed: torch.Tensor, block: ExpertsBlock, token_ids: Integers
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64, float32), both [n, top_k]: the experts of each row of the normed stream, and
        their weights."""
        chosen = None if block.hash_table is None else self._by_table(block, token_ids)
        logits = self.product(normed, block.router)
        return self._choose(logits, block.routing, block.correction, chosen)

    def _by_table(self, block: ExpertsBlock, token_ids: Integers) -> torch.Tensor:
        """int32 [n, top_k]: the experts of these tokens. The table is put on the device once, so
        that steps whose tokens are known there alone can look them up."""
        if block not in self._tables:
            assert block.hash_table is not None
            self._tables[block] = self._transfer.load(block.hash_table)
        places = self._transfer.upload(token_ids.astype(np.int64))
        return self._tables[block].index_select(0, places)

    def _experts(
        self, x: torch.Tensor, block: ExpertsBlock, places: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum of each row's experts, weighed."""
        count, top_k = places.shape
        numbers = self._transfer.download(places).reshape(-1)
        # Pairs of a row and an expert in the order of experts: each expert's lie together.
        order = np.argsort(numbers, kind="stable")
        at = np.empty_like(order)
        at[order] = np.arange(len(order))
        # Each row's pairs in the order of experts, so that its sum does not depend on the batch.
        at = np.sort(at.reshape(count, top_k), axis=1).reshape(-1)
        pairs, rows, back = self._transfer.upload(np.stack((order, order // top_k, at))).unbind(0)
        given = x.index_select(0, rows)
        factors = weights.reshape(-1).index_select(0, pairs)[:, None]
        if block.weighted_before:
            given = given * factors
        counts = np.bincount(numbers, minlength=block.router.weight.shape[0])
        ends = np.cumsum(counts)
        here = range(block.first, block.first + len(block.experts))
        # What goes to experts of other ranks gives nothing here.
        whole = len(here) == len(counts)
        result = torch.empty_like(given) if whole else torch.zeros_like(given)
        for index in np.flatnonzero(counts).tolist():
            if index in here:
                mine = slice(int(ends[index] - counts[index]), int(ends[index]))
                expert = block.experts[index - block.first]
                result[mine] = self.expert(given[mine], expert, block.gating)
        if not block.weighted_before:
            result = result * factors
        return result.index_select(0, back).reshape(count, top_k, x.shape[1]).sum(1)

    def expert(self, x: torch.Tensor, expert: Expert, gating: Gating) -> torch.Tensor:
        """One expert's result for every row of x."""
        gate_values, up = self.product(x, expert.gate), self.product(x, expert.up)
        if isinstance(gating, ClampedSwish):
            joined = clamped_gate(gate_values, up, gating)
        else:
            joined = gate(gate_values, up, gating)
        return self.product(joined, expert.down)

    def product(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """A product of the layer."""
        return self._products.product(x, product.weight, product.bias)

    def _choose(
        self,
        logits: torch.Tensor,
        routing: Routing,
        correction: torch.Tensor | None,
        chosen: torch.Tensor | Integers | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64, float32), both [n, top_k]: experts and their weights."""
        scores = _scores(logits, routing)
        if chosen is not None:
            if not isinstance(chosen, torch.Tensor):
                chosen = self._transfer.upload(chosen)
            places = chosen.long()
        else:
            preference = scores if correction is None else scores + correction
            if routing.groups_kept < routing.groups:
                preference = _within_best_groups(preference, routing)
            places = _largest(preference, routing.top_k)
        weights = scores.gather(1, places)
        if routing.renormalised:
            weights = weights / (weights.sum(1, keepdim=True) + _LEAST_SUM)
        return places, routing.scale * weights


def _norm(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return x if norm is None else rms_norm(x, norm.weight, norm.epsilon)


def _scores(logits: torch.Tensor, routing: Routing) -> torch.Tensor:
    if routing.score == "softmax":
        return torch.softmax(logits, 1)
    if routing.score == "sigmoid":
        return torch.sigmoid(logits)
    return torch.sqrt(functional.softplus(logits))


def _within_best_groups(preference: torch.Tensor, routing: Routing) -> torch.Tensor:
    """The preferences, those of groups that are not kept at minus infinity."""
    rows, experts = preference.shape
    grouped = preference.reshape(rows, routing.groups, experts // routing.groups)
    counted = 1 if routing.group_score == "largest" else 2
    group_scores = grouped.sort(2, descending=True).values[:, :, :counted].sum(2)
    kept = torch.zeros_like(group_scores).scatter_(
        1, _largest(group_scores, routing.groups_kept), 1.0
    )
    return grouped.masked_fill(kept[:, :, None] == 0, -torch.inf).reshape(rows, experts)


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of each row's largest values, the lower index first where values are equal."""
    return torch.sort(values, dim=1, descending=True, stable=True).indices[:, :count]
