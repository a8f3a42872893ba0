"""The kernels of this package for products, experts, norms and gates, where Triton runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstlight.backends.base import Kernel
from firstlight.backends.torch.products import ProductKernels
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.launching import usable

if TYPE_CHECKING:
    from firstlight.backends.torch.triton.products import TritonProducts


def triton_products(
    transfer: Transfer, plain: ProductKernels, narrow: bool, exact: bool
) -> TritonProducts | None:
    """Products in Triton; None where it does not run.

    Args:
        plain: the products of what these do not decode.
        narrow: whether `plain` rounds activations for bfloat16 weights.
        exact: round no activations at all.
    """
    if not usable(transfer.device):
        return None
    from firstlight.backends.torch.triton.products import TritonProducts

    return TritonProducts(plain, narrow, exact)


def product_kernels(transfer: Transfer, products: TritonProducts | None) -> tuple[Kernel, ...]:
    """Kernels to be preferred to those in plain PyTorch; none without products."""
    if products is None:
        return ()
    from firstlight.backends.torch.triton import gates, rows
    from firstlight.backends.torch.triton.experts import TritonExperts
    from firstlight.backends.torch.triton.heads import TritonHeads

    return (
        *products.all(),
        *TritonExperts(transfer, products).all(),
        *TritonHeads(products).all(),
        Kernel("rms_norm", "whole rows", rows.rms_norm, rows.takes_norm),
        Kernel("gate", "one pass", gates.gate, parameters=gates.PARAMETERS),
        Kernel("clamped_gate", "one pass", gates.clamped_gate, parameters=gates.PARAMETERS),
    )
