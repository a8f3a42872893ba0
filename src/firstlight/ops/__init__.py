"""The contract between models and chips: a closed set of ops, each defined in NumPy."""

from firstlight.ops import attention, elementwise, feed_forward, linear, rotary
from firstlight.ops.contract import Cost, Op, Tolerance, all_ops, get_op
from firstlight.ops.interface import Ops, PackedWeight, Tensor
from firstlight.ops.paging import PagedRows

__all__ = [
    "Cost",
    "Op",
    "Ops",
    "PackedWeight",
    "PagedRows",
    "Tensor",
    "Tolerance",
    "all_ops",
    "attention",
    "elementwise",
    "feed_forward",
    "get_op",
    "linear",
    "rotary",
]
