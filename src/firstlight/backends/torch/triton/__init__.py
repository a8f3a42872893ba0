"""Kernels in Triton: one text, which Triton's compilers turn into the code of each maker's chips.

Only `launching` may be imported where Triton is not installed; all else is imported once
`launching.usable` has said yes.
"""
