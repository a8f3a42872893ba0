"""The contract between models and chips: a closed set of ops, each defined in NumPy."""

from firstlight.ops import (
    attention,
    attention_with_sinks,
    choose_tokens,
    columns,
    compressed_attention,
    elementwise,
    hyper_connections,
    linear,
    rotary,
    select_entries,
    selected_latent_attention,
)
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.choose_tokens import TokenChoice
from firstlight.ops.collective import Collective, RankGroup, RanksError
from firstlight.ops.contract import Cost, Op, Tolerance, all_ops, get_op
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.gating import ClampedSwish, Gating
from firstlight.ops.head import Head
from firstlight.ops.head_linear import HeadProduct
from firstlight.ops.hyper_connections import ConnectionNumbers
from firstlight.ops.interface import Ops, PackedWeight, Replayer, Tensor
from firstlight.ops.latent_attention_block import LatentAttentionBlock
from firstlight.ops.paging import PagedRows
from firstlight.ops.parts import LayerNorm, Norm, Product
from firstlight.ops.routing import Routing
from firstlight.ops.sparse_latent_attention_block import Indexer, SparseLatentAttentionBlock

__all__ = [
    "AttentionBlock",
    "ClampedSwish",
    "Collective",
    "ConnectionNumbers",
    "Cost",
    "Expert",
    "ExpertsBlock",
    "FeedForwardBlock",
    "Gating",
    "Head",
    "HeadProduct",
    "Indexer",
    "LatentAttentionBlock",
    "LayerNorm",
    "Norm",
    "Op",
    "Ops",
    "PackedWeight",
    "PagedRows",
    "Product",
    "RankGroup",
    "RanksError",
    "Replayer",
    "Routing",
    "SparseLatentAttentionBlock",
    "Tensor",
    "TokenChoice",
    "Tolerance",
    "all_ops",
    "attention",
    "attention_with_sinks",
    "choose_tokens",
    "columns",
    "compressed_attention",
    "elementwise",
    "get_op",
    "hyper_connections",
    "linear",
    "rotary",
    "select_entries",
    "selected_latent_attention",
]
