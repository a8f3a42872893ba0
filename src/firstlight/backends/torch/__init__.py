"""The torch backend: every op in plain PyTorch, on any device that PyTorch reaches.

Nothing here is imported unless such a device is asked for.
"""
