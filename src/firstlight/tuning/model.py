"""Tuning a model that is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator

from firstlight.language_model import LanguageModel
from firstlight.progress import Advance
from firstlight.tuning.store import Store
from firstlight.tuning.tuner import DEFAULT_SECONDS, Result, Settings, tune

# Of the memory that is free, what the made-up state of the tuning's steps may take.
_STATE_SHARE = 0.25


def tune_model(
    model: LanguageModel,
    store: Store,
    seconds: float = DEFAULT_SECONDS,
    *,
    state: str = "float32",
    restart: bool = False,
    advance: Advance = lambda _: None,
) -> Iterator[Result]:
    """Tune a model's shapes, and have its backend run so from then on, even where it is left early.

    Args:
        store: of the model's backend.
        seconds: for everything; less where all is clear before.
        state: dtype of keys and values, as the model was loaded with.
        restart: forget first what is known of the model's shapes.
        advance: told of each second that has passed, whenever a shape is done.

    Raises:
        RequestError: seconds is not above zero.
        FirstlightError: the store cannot be written.
    """
    decoder = model.engine.decoder
    entry_bytes = sum(
        stream.entry_bytes(state) // stream.stride for layer in decoder.streams for stream in layer
    )
    settings = Settings(
        seconds=seconds,
        page_tokens=model.engine.pages.page_tokens,
        state=state,
        context_length=model.engine.context_length,
        state_tokens=int(_STATE_SHARE * model.backend.available_memory()) // max(1, entry_bytes),
    )
    started, shown = time.perf_counter(), 0
    ceilings = model.backend.known_ceilings()
    try:
        for result in tune(decoder, model.backend, store, settings, ceilings, restart=restart):
            passed = min(int(time.perf_counter() - started), int(seconds))
            advance(passed - shown)
            shown = passed
            yield result
    finally:
        store.apply()
