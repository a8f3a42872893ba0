"""Families: a short file each, from config and tensor names to a `ModelSpec`."""
