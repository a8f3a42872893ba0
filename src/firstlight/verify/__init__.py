"""Whether what runs is right: kernels against their definitions, and which may serve here."""
