"""Choosing kernels and their parameters by timing them on the device and the model at hand.

How others do it, and what is ours: FFTW's planner keeps what it measured as "wisdom", with the
rigour that went into it; Triton's autotuner times every configuration for each new key; TVM's
scheduler spends its time where a model spends its own. Here too, but a challenger must beat the
default in a duel of fresh measurements, and must not change a bit of the result.
"""
