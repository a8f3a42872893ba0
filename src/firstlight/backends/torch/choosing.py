"""The choice of tokens on the device, so that a step brings a few numbers to the host.

Everything that decides sizes is known on the host, so nothing here waits. Powers are float32 and
sums float64, as in ops/drawing.py, where the device has float64; so a token differs from the
definition's only where the random number lies within rounding of the border of two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.choose_tokens import (
    IMPOSSIBLE,
    INFINITE,
    NONE_ALLOWED,
    NOT_A_NUMBER,
    NOT_REACHED,
    TokenChoice,
)

_LARGEST = torch.finfo(torch.float32).max
_COLDEST = 1e-30
_MOST_CANDIDATES = 2048
"""Of a top-k that is looked for by itself; more are found by sorting all."""


@dataclass(frozen=True)
class _Order:
    """In which order tokens are drawn from, and how many are looked at; 0: all."""

    falling: bool
    candidates: int


class ChoosingKernels:
    """The kernels of one device.

    Args:
        doubles: whether the device has float64.
    """

    def __init__(self, transfer: Transfer, doubles: bool) -> None:
        self._transfer = transfer
        self._host_type = np.float64 if doubles else np.float32
        self._wide = torch.float64 if doubles else torch.float32

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel("choose_tokens", "sorted", self.choose_tokens),
            Kernel("likeliest_tokens", "sorted", self.likeliest_tokens),
            Kernel("token_log_probabilities", "plain", self.token_log_probabilities),
        )

    def choose_tokens(self, logits: torch.Tensor, choices: tuple[TokenChoice, ...]) -> torch.Tensor:
        if not choices:
            return torch.empty(0, dtype=torch.int32, device=logits.device)
        top = logits.amax(1)  # NaN where any is
        masked = self._masked(logits, choices)
        allowed = None if masked is logits else masked.amax(1)
        adjusted = self._adjusted(masked, choices)
        tokens = adjusted.argmax(1)
        for order, rows in self._draws(choices, logits.shape[1]).items():
            mine = [choices[row] for row in rows]
            if len(rows) == len(choices):
                tokens = self._draw(adjusted, mine, order)
                continue
            numbers = self._upload(np.array(rows, np.int64))
            found = self._draw(adjusted.index_select(0, numbers), mine, order)
            tokens.index_copy_(0, numbers, found)
        if allowed is not None:
            tokens = tokens.masked_fill(allowed == -torch.inf, NONE_ALLOWED)
        tokens = tokens.masked_fill(top == -torch.inf, IMPOSSIBLE)
        tokens = tokens.masked_fill(top == torch.inf, INFINITE)
        tokens = tokens.masked_fill(top != top, NOT_A_NUMBER)
        return self._reached(tokens, choices).int()

    def likeliest_tokens(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        return _falling(logits, count).int()

    def token_log_probabilities(
        self, logits: torch.Tensor, tokens: torch.Tensor | NDArray[np.int32]
    ) -> torch.Tensor:
        if not isinstance(tokens, torch.Tensor):
            tokens = self._upload(tokens.astype(np.int64))
        top = logits.amax(1, keepdim=True)
        total = torch.exp(logits - top).sum(1, keepdim=True, dtype=self._wide)
        values = logits.gather(1, tokens.long().clamp(min=0)).to(self._wide)
        return (values - top.to(self._wide) - torch.log(total)).float()

    # What happens to logits first ------------------------------------------------------------

    def _masked(self, logits: torch.Tensor, choices: tuple[TokenChoice, ...]) -> torch.Tensor:
        rows = [row for row, choice in enumerate(choices) if choice.allowed is not None]
        if not rows:
            return logits
        allowed = self._upload(np.stack([_allowed(choices[row]) for row in rows]))
        numbers = self._upload(np.array(rows, np.int64))
        mine = logits.index_select(0, numbers).masked_fill(~allowed, -torch.inf)
        return logits.index_copy(0, numbers, mine)

    def _adjusted(self, logits: torch.Tensor, choices: tuple[TokenChoice, ...]) -> torch.Tensor:
        """Rounded to float32 where the definition goes on in float64."""
        adjustments = [
            (row, choice.adjustment)
            for row, choice in enumerate(choices)
            if choice.adjustment is not None and len(choice.adjustment.tokens)
        ]
        if not adjustments:
            return logits
        vocabulary = logits.shape[1]
        places = np.concatenate([row * vocabulary + each.tokens for row, each in adjustments])
        numbers = np.stack(
            [
                np.concatenate([getattr(each, name) for _, each in adjustments])
                for name in ("bias", "factors", "less")
            ]
        )
        bias, factors, less = self._upload(numbers.astype(self._host_type)).unbind(0)
        where = self._upload(places)
        flat = logits.reshape(-1)
        values = flat.index_select(0, where).to(self._wide) + bias
        values = torch.where(values > 0, values / factors, values * factors) - less
        bounded = values.clamp(-_LARGEST, _LARGEST).float()
        bounded = bounded.masked_fill(values == -torch.inf, -torch.inf)
        return flat.index_copy(0, where, bounded).reshape(logits.shape)

    # The draw --------------------------------------------------------------------------------

    def _draws(self, choices: tuple[TokenChoice, ...], vocabulary: int) -> dict[_Order, list[int]]:
        """Rows that draw, those together that look at their tokens alike."""
        kinds: dict[str, list[int]] = {}
        for row, choice in enumerate(choices):
            if choice.temperature > 0:
                kinds.setdefault(_kind(choice, vocabulary), []).append(row)
        orders: dict[_Order, list[int]] = {}
        for kind, rows in kinds.items():
            most = max(choices[row].top_k for row in rows) if kind == "few" else 0
            orders[_Order(kind != "all", most)] = rows
        return orders

    def _draw(
        self, logits: torch.Tensor, choices: list[TokenChoice], order: _Order
    ) -> torch.Tensor:
        """int64 [rows]: a token drawn for each row."""
        numbers = self._upload(
            np.array(
                [(c.temperature, c.top_p, c.min_p, c.number, c.top_k) for c in choices],
                self._host_type,
            ).T.copy()
        )
        temperature, top_p, min_p, number, top_k = numbers[:, :, None].unbind(0)
        tokens = None
        values = logits
        if order.falling:
            tokens = _falling(logits, order.candidates or logits.shape[1])
            values = logits.gather(1, tokens)
        top = values[:, :1] if order.falling else values.amax(1, keepdim=True)
        cooled = (values - top) / temperature.float().clamp(min=_COLDEST)
        powers = torch.exp(cooled).to(self._wide)
        place = torch.arange(values.shape[1], device=logits.device)
        if any(choice.top_k for choice in choices):
            powers = powers.masked_fill((place >= top_k) & (top_k > 0), 0.0)
        shares = powers / powers.sum(1, keepdim=True)
        if any(choice.top_p < 1.0 for choice in choices):
            before = torch.cumsum(shares, 1) - shares
            shares = shares.masked_fill((before >= top_p) & (top_p < 1.0), 0.0)
        if any(choice.min_p > 0.0 for choice in choices):
            least = min_p * shares.amax(1, keepdim=True)
            shares = shares.masked_fill(shares < least, 0.0)
        after = torch.cumsum(shares, 1)
        drawn = (after <= number * after[:, -1:]).sum(1, keepdim=True)
        # Rounding may lead past the last token that has any weight.
        last = torch.where(shares > 0, place, 0).amax(1, keepdim=True)
        drawn = torch.minimum(drawn, last)
        return (drawn if tokens is None else tokens.gather(1, drawn))[:, 0]

    def _reached(self, tokens: torch.Tensor, choices: tuple[TokenChoice, ...]) -> torch.Tensor:
        """NOT_REACHED from the first row on whose row before chose otherwise, up to the next that
        stands for itself."""
        if all(choice.follows is None for choice in choices):
            return tokens
        follows = [-1 if choice.follows is None else choice.follows for choice in choices]
        starts = np.maximum.accumulate(
            [row if token < 0 else 0 for row, token in enumerate(follows)]
        )
        wanted, first = self._upload(np.array([follows, starts], np.int64)).unbind(0)
        wrong = (wanted >= 0) & (wanted != tokens.roll(1))
        count = torch.cumsum(wrong.long(), 0)
        missed = count - count.index_select(0, first) > 0
        return tokens.masked_fill(missed, NOT_REACHED)

    def _upload(self, array: NDArray[np.generic]) -> torch.Tensor:
        return self._transfer.upload(array)


def _allowed(choice: TokenChoice) -> NDArray[np.bool_]:
    assert choice.allowed is not None
    return choice.allowed


def _kind(choice: TokenChoice, vocabulary: int) -> str:
    """How a row looks at its tokens: at the few largest, at all by falling logit, or by id."""
    if 0 < choice.top_k < vocabulary:
        return "few" if choice.top_k <= _MOST_CANDIDATES else "sorted"
    return "sorted" if choice.top_p < 1.0 else "all"


def _falling(logits: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [rows, count]: the tokens of the largest logits, by falling logit, equal ones by id."""
    vocabulary = logits.shape[1]
    if count > _MOST_CANDIDATES:
        order = torch.sort(logits, dim=1, descending=True, stable=True).indices
        return order[:, :count]
    # Bits of floating-point numbers are ordered as the numbers are, but for the sign; with the id
    # below them no two keys are equal, so that a selection which knows no order of equals has one.
    bits = (logits + 0.0).view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    place = torch.arange(vocabulary - 1, -1, -1, device=logits.device)
    keys = torch.topk((ordered << 32) + place, count, dim=1).values
    return vocabulary - 1 - (keys & 0xFFFFFFFF)
