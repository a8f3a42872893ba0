"""The kernels of this package for products, experts, norms and gates, where Triton runs."""

from __future__ import annotations

from firstlight.backends.base import Kernel
from firstlight.backends.torch.products import ProductKernels
from firstlight.backends.torch.transfer import Transfer
from firstlight.backends.torch.triton.launching import usable


def product_kernels(
    transfer: Transfer, plain: ProductKernels, narrow: bool, exact: bool
) -> tuple[Kernel, ...]:
    """Every kernel, in order of preference within an op; none where Triton does not run.

    Args:
        plain: the products of what these kernels do not decode.
        narrow: whether `plain` rounds activations for bfloat16 weights.
        exact: round no activations at all.
    """
    if not usable(transfer.device):
        return ()
    from firstlight.backends.torch.triton import gates, rows
    from firstlight.backends.torch.triton.experts import TritonExperts
    from firstlight.backends.torch.triton.products import TritonProducts

    products = TritonProducts(plain, narrow, exact)
    return (
        *products.all(),
        *TritonExperts(transfer, products).all(),
        Kernel("rms_norm", "row by row", rows.rms_norm, rows.takes_norm),
        Kernel("gate", "triton", gates.gate, parameters=gates.PARAMETERS),
        Kernel("clamped_gate", "triton", gates.clamped_gate, parameters=gates.PARAMETERS),
    )
