"""Packed weights on disk: written once, memory-mapped after that.

Nothing here knows of models or chips: a caller names tensors and says how many bytes each has, and
fills them. docs/packed-cache.md describes the files.
"""
