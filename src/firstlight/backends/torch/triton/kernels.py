"""Every kernel in Triton that a device can have."""

from __future__ import annotations

from firstlight.backends.kernel import Kernel
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.launching import usable


def triton_kernels(transfer: Transfer, exact: bool) -> tuple[Kernel, ...]:
    """Kernels to be preferred to those in plain PyTorch; none where Triton cannot be used.

    Args:
        exact: round no activations.
    """
    if not usable(transfer.device):
        return ()
    from firstlight.backends.torch.triton.attention import attention_kernels
    from firstlight.backends.torch.triton.index_scores import IndexScores
    from firstlight.backends.torch.triton.listed import listed_kernels

    return (
        *attention_kernels(transfer, exact),
        *listed_kernels(transfer, exact),
        *IndexScores(transfer).all(),
    )
