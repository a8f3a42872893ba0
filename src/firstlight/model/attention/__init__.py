"""Kinds of attention, a file each. A kind declares its streams and computes one layer's block."""

from firstlight.model.attention.grouped_query import attend, streams

__all__ = ["attend", "streams"]
