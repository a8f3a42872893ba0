"""A replica's first steps, before it takes requests."""

from __future__ import annotations

import time

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions

_PROMPT_TOKENS = 32


def warm_up(engine: Engine) -> float:
    """Compute two short prompts and a token of each.

    The first brings weights from the disk and wakes threads; the second is timed. So a server knows
    what a step may take before anybody waits for one. 32 tokens at a time are computed at nearly
    the cost each that they have in larger steps.

    Returns:
        Seconds that a step with the whole token budget should take, over little context.
    """
    vocabulary = engine.decoder.spec.vocabulary_size
    length = min(_PROMPT_TOKENS, engine.context_length, engine.token_budget)
    seconds = 0.0
    for first in (0, length):
        prompt = [(first + index) % vocabulary for index in range(length)]
        sequence = engine.add(prompt, SamplingParameters(), StopConditions(max_tokens=2))
        started = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started
        while sequence.finish is None:
            engine.step()
    return seconds / length * engine.token_budget
