"""Several residual streams on the device: the weights of a block's connection, and their sums."""

from __future__ import annotations

import torch

from firstlight.backends.base import Kernel
from firstlight.ops.hyper_connections import ConnectionNumbers


def connection_weights(
    logits: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, numbers: ConnectionNumbers
) -> torch.Tensor:
    m, epsilon = numbers.streams, numbers.epsilon
    pre = torch.sigmoid(logits[:, :m] * scale[0] + base[:m]) + epsilon
    if logits.shape[1] == m:
        return pre
    post = 2.0 * torch.sigmoid(logits[:, m : 2 * m] * scale[1] + base[m : 2 * m])
    mix = (logits[:, 2 * m :] * scale[2] + base[2 * m :]).reshape(-1, m, m)
    mix = torch.softmax(mix, 2) + epsilon
    mix = mix / (mix.sum(1, keepdim=True) + epsilon)
    for _ in range(numbers.iterations - 1):
        mix = mix / (mix.sum(2, keepdim=True) + epsilon)
        mix = mix / (mix.sum(1, keepdim=True) + epsilon)
    return torch.cat((pre, post, mix.reshape(-1, m * m)), 1)


def collapse_streams(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    out = x[:, 0] * weights[:, :1]
    for stream in range(1, x.shape[1]):
        out.addcmul_(x[:, stream], weights[:, stream, None])
    return out


def expand_streams(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows, m, _ = x.shape
    mix = weights[:, 2 * m :].reshape(rows, m, m)
    out = weights[:, m : 2 * m, None] * y[:, None]
    for stream in range(m):
        out.addcmul_(mix[:, stream, :, None], x[:, stream, None])
    return out


def hyper_connection_kernels() -> tuple[Kernel, ...]:
    """Every kernel."""
    runs = connection_weights, collapse_streams, expand_streams
    return tuple(Kernel(run.__name__, "plain", run) for run in runs)
