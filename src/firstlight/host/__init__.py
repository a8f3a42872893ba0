"""Facts about the machine that firstlight runs on: memory, cores, caches, measured ceilings."""
