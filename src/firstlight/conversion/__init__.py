"""Checkpoints in another storage format, written so that others can read them too (docs/convert.md)."""
