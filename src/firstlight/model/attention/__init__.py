"""Kinds of attention, a file each. A kind declares its streams and describes one layer's block."""

from firstlight.model.attention.grouped_query import attention_block, streams

__all__ = ["attention_block", "streams"]
