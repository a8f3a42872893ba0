"""One model over several devices of this host: a process for each, all of which compute every step.

The first rank is the process that asked for the model. It alone has an engine, plans steps and
samples; the others (`follower.py`) hold their part of weights and state and do as they are told.
"""
