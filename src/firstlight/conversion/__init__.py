"""Checkpoints in another storage format, for other readers too (docs/convert.md)."""
