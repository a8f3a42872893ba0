"""Speed as users meet it: a model on a device beside its ceiling, and any server under load."""
