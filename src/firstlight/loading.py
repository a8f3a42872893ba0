"""From a model's name to a `LanguageModel`."""

from __future__ import annotations

import warnings
from pathlib import Path

from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import Checkpoint, open_checkpoint
from firstlight.checkpoint.resolve import resolve_model
from firstlight.checkpoint.tokenizer import Tokenizer, load_tokenizer
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import TOKEN_BUDGET, MemoryPlan, fit_context, plan_memory
from firstlight.errors import RequestError, TokenizerError
from firstlight.formats.base import Format
from firstlight.formats.registry import get_format
from firstlight.host.memory import available_memory
from firstlight.language_model import LanguageModel
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec
from firstlight.model.spec import ModelSpec
from firstlight.model.stream import VALUE_BYTES
from firstlight.model.weights import load_weights
from firstlight.progress import progress


def load(
    model: str | Path,
    device: str = "cpu",
    weights: str | None = None,
    *,
    context_length: int | None = None,
    sequences: int = 1,
    token_budget: int = TOKEN_BUDGET,
    state: str = "float32",
    endpoint: str | None = None,
) -> LanguageModel:
    """Load a model.

    Args:
        model: a Hugging Face model directory, a .gguf file, a hub id ("org/name", optionally
            "@revision"), or "demo".
        device: backend to run on: "cpu" or "numpy".
        weights: storage format to convert matrices to ("int8", "int4", "bf16", "f32", ...); None
            keeps each as it is stored.
        context_length: longest sequence in tokens; None: the model's own, or what fits in memory
            where that is less.
        sequences: sequences of that length to hold state for at once.
        token_budget: most tokens of one step; longer prompts are computed in chunks.
        state: dtype of keys and values, "float32" or "bfloat16".
        endpoint: hub to fetch from, instead of the default.

    Raises:
        FirstlightError: the model cannot be found, read, fetched, or does not fit; the message
            says what to do.
    """
    for name, value in (("sequences", sequences), ("token_budget", token_budget)):
        _at_least_one(name, value)
    if context_length is not None:
        _at_least_one("context_length", context_length)
    if state not in VALUE_BYTES:
        raise RequestError(
            f"state {state!r}", "is no dtype for state", f"Use one of: {', '.join(VALUE_BYTES)}"
        )
    checkpoint = open_checkpoint(resolve_model(str(model), endpoint=endpoint))
    spec = make_spec(checkpoint)
    target = None if weights is None else get_format(weights)
    tokenizer = _tokenizer(checkpoint)
    if context_length is not None and context_length > spec.context_length:
        warnings.warn(
            f"{model}: a context of {context_length} tokens is more than the "
            f"{spec.context_length} that the model was made for; expect poor text beyond them",
            stacklevel=2,
        )
    plan = memory_plan(checkpoint, spec, target, context_length, state, sequences)
    backend = open_device(device)
    with progress("Reading weights", total=plan.weights) as advance:
        loaded = load_weights(spec, checkpoint, backend, target, advance)
    engine = Engine(
        Decoder(spec, loaded, backend), plan.context_length, sequences, token_budget, state
    )
    return LanguageModel(checkpoint, spec, tokenizer, engine, backend)


def memory_plan(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    target: Format | None = None,
    context_length: int | None = None,
    state: str = "float32",
    sequences: int = 1,
) -> MemoryPlan:
    """What loading would need, at the context length that it would choose.

    Raises:
        InsufficientMemoryError: it does not fit on this machine.
    """
    return fit_context(
        spec,
        lambda length: plan_memory(spec, checkpoint, length, target, state, sequences),
        available_memory(),
        context_length,
        checkpoint.location,
    )


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(name, f"is {value!r}", "Use a whole number of at least 1")


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | TokenizerError:
    """The tokenizer, or why there is none: the model can still be used with token ids."""
    try:
        return load_tokenizer(checkpoint)
    except TokenizerError as error:
        return error
