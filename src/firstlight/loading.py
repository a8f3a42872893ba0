"""From a model's name to a `LanguageModel`."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from firstlight.backends import open_device, rank_devices
from firstlight.checkpoint.checkpoint import Checkpoint, open_checkpoint
from firstlight.checkpoint.resolve import resolve_model
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from firstlight.engine.engine import Engine
from firstlight.engine.memory_plan import (
    MemoryPlan,
    fit_context,
    gibibytes,
    plan_mapped,
    plan_memory,
)
from firstlight.engine.options import PAGE_TOKENS, PROMPT_BUDGET, TOKEN_BUDGET, check_options
from firstlight.engine.speculation import Speculation, check_prediction
from firstlight.errors import (
    InsufficientMemoryError,
    RequestError,
    TokenizerError,
)
from firstlight.formats.base import Format
from firstlight.formats.registry import conversion_target
from firstlight.host.memory import address_space_left, available_memory
from firstlight.language_model import LanguageModel, no_chat_template
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec
from firstlight.model.matrices import kept_matrices
from firstlight.model.spec import ModelSpec
from firstlight.model.stream import state_dtype
from firstlight.model.weights import check_sources
from firstlight.ops import Ops
from firstlight.packing import load_packed_weights
from firstlight.progress import progress
from firstlight.tuning.store import Store, apply_tuning

if TYPE_CHECKING:
    from firstlight.held_weights import HeldWeights

Use = Literal["ids", "text", "chat"]

SEQUENCES = 32
# Of the memory that is left beside one sequence of full length, what state for more takes.
_SPARE_SHARE = 0.125


class LargerThanMemoryWarning(UserWarning):
    """Memory does not hold a model's weights; it runs all the same, slowly."""


def load(
    model: str | Path,
    device: str = "cpu",
    weights: str | None = None,
    *,
    context_length: int | None = None,
    sequences: int = SEQUENCES,
    token_budget: int = TOKEN_BUDGET,
    prompt_budget: int = PROMPT_BUDGET,
    state: str = "auto",
    state_memory: int | None = None,
    prefix_caching: bool = True,
    speculation: Speculation = "auto",
    exact: bool = False,
    endpoint: str | None = None,
    update: bool = False,
    use: Use = "ids",
    cache: bool = True,
    tune: float | None = 0.0,
    graphs: bool = True,
) -> LanguageModel:
    """Load a model.

    Args:
        model: a Hugging Face model directory, a .gguf file, a hub id ("org/name", optionally
            "@revision"), or "demo".
        device: what to run on: "cpu", "numpy", or a device of PyTorch's ("torch", "torch:cpu",
            "torch:TYPE:INDEX"; docs/torch.md), or several that share the model
            ("torch:TYPE:FIRST-LAST"; docs/parallel.md).
        weights: storage format to convert matrices to ("int8", "int4", "bf16", "f32", ...); None
            keeps each as it is stored.
        context_length: longest sequence in tokens; None: the model's own, or what fits in memory
            where that is less.
        sequences: how many may run at once; further ones wait. They share the state's memory.
        token_budget: most tokens of one step; longer prompts are computed in chunks.
        prompt_budget: most tokens of prompts in a step in which other sequences decode.
        state: dtype of keys and values: "float32", "bfloat16", or "auto" (see `state_dtype`).
        state_memory: bytes of state, used as sequences grow and for prefixes that may come again.
            None: what one sequence of full length takes, and for more of them an eighth of the
            memory left.
        prefix_caching: have sequences that begin alike share that part's state.
        speculation: guess so many tokens ahead from what stands in the text already; "auto" where
            that pays, "off" never, "mtp" by the model's own layer of multi-token prediction. Output
            is the same.
        exact: keep to the definitions up to the order of float32 sums: no kernel rounds
            activations, and state is float32. Slower; docs/fidelity.md says what it changes.
        endpoint: hub to fetch from, instead of the default.
        update: ask the hub whether a branch that is in the local cache has moved on.
        use: what the model must be good for: "ids" (anything), "text" (it has a tokenizer that
            works) or "chat" (and a chat template). Whatever is missing is said before the weights
            are read.
        cache: keep packed weights on disk, and use those that are there (docs/packed-cache.md).
        tune: kernels are chosen as `firstlight tune` found best on this device; a number above
            zero takes up to so many seconds to tune first what is not known yet, and None does
            without all tuning. A token is the same either way.
        graphs: steps that only decode are recorded and replayed as a whole, where the device can
            (docs/torch.md).

    Raises:
        FirstlightError: the model cannot be found, read, fetched, or does not fit; the message
            says what to do.
    """
    state = state_dtype(state, exact=exact)
    check_options(
        1 if context_length is None else context_length,
        sequences,
        token_budget,
        state,
        state_memory=state_memory,
        prompt_budget=prompt_budget,
        speculation=speculation,
    )
    # What needs no model comes first: nobody downloads one to learn of a misspelt option.
    target = conversion_target(weights)
    if tune is not None:
        check_seconds(tune)
    devices = rank_devices(device)
    leader = None
    if len(devices) > 1:
        from firstlight.parallel.leader import Leader, check_shared

        check_shared(device, speculation, tune)
        leader = Leader(device, devices, exact=exact, tuned=tune is not None)
    with nullcontext() if leader is None else leader:
        backend = open_device(devices[0], exact=exact)
        if not graphs:
            backend.forgo_replay()
        store = None if tune is None else apply_tuning(backend)
        checkpoint = open_checkpoint(resolve_model(str(model), endpoint=endpoint, update=update))
        spec = largest = make_spec(checkpoint, predictor=speculation == "mtp")
        check_prediction(speculation, spec.predictor is not None, model)
        check_formats(checkpoint, spec)
        tokenizer = _tokenizer(checkpoint, use)
        if context_length is not None and context_length > spec.context_length:
            warnings.warn(
                f"{model}: a context of {context_length} tokens is more than the "
                f"{spec.context_length} that the model was made for; expect poor text beyond them",
                stacklevel=2,
            )
        available = backend.available_memory()
        if leader is not None:
            check_sources(spec, checkpoint)
            spec, largest = leader.parts(spec, checkpoint, target)
            available = leader.available_memory(backend)
        plan = memory_plan(
            checkpoint,
            largest,
            target,
            context_length,
            state,
            sequences,
            token_budget,
            backend,
            state_memory,
            available,
        )
        # Counted before anything is loaded, which memory for weights is what is left of it.
        memory = available_memory() - plan.total
        name, mapped = str(model), plan.mapped > 0
        if mapped:
            _say_how_slow(name, checkpoint, spec, backend, target, plan, memory, token_budget)
        if leader is not None:
            leader.load(name, checkpoint, weights, cache)
        loaded = load_packed_weights(name, checkpoint, spec, backend, target, cache, mapped)
        if leader is None:
            decoder = Decoder(spec, loaded, backend)
        else:
            decoder = leader.decoder(spec, loaded, backend)
        if mapped:
            decoder.after_pass = _hold(decoder, checkpoint, backend, target, memory).after_pass
        engine = Engine(
            decoder,
            plan.context_length,
            sequences,
            token_budget,
            state,
            state_memory=plan.state,
            prompt_budget=prompt_budget,
            prefix_caching=prefix_caching,
            speculation=speculation,
        )
        loaded_model = LanguageModel(checkpoint, spec, tokenizer, engine, backend)
        if tune and store is not None:
            _tune_now(loaded_model, store, tune, state)
        return loaded_model


def check_seconds(seconds: float) -> None:
    """RequestError where that is no time to tune in."""
    if not 0 <= seconds < float("inf"):
        raise RequestError(
            f"tune {seconds:g}", "is no number of seconds", "Give a number above zero"
        )


def _tune_now(model: LanguageModel, store: Store, seconds: float, state: str) -> None:
    from firstlight.tuning.model import tune_model

    with progress("Tuning", total=round(seconds), unit="s") as advance:
        for _ in tune_model(model, store, seconds, state=state, advance=advance):
            pass


def check_formats(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """FormatError, naming file and tensor, where a tensor's storage format cannot be read."""
    for source in spec.sources():
        if source.scales is None and not source.integers:
            checkpoint.format_of(source.name)


def memory_plan(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    target: Format | None = None,
    context_length: int | None = None,
    state: str = "auto",
    sequences: int = 1,
    token_budget: int = TOKEN_BUDGET,
    ops: Ops | None = None,
    state_memory: int | None = None,
    available: int | None = None,
) -> MemoryPlan:
    """What loading would need, at the context length and with the state that it would choose.

    Where the weights are larger than memory, they stay mapped from their files, unless several
    devices share them.

    Args:
        available: bytes of memory; None: what the backend `ops` says.

    Raises:
        InsufficientMemoryError: it does not fit on this machine even so.
    """
    if available is None:
        available = available_memory() if ops is None else ops.available_memory()
    dtype = state_dtype(state)

    def plan(length: int, memory: int | None, sequences: int = 1) -> MemoryPlan:
        return plan_memory(
            spec, checkpoint, length, target, dtype, sequences, token_budget, ops, memory
        )

    def in_files() -> MemoryPlan | None:
        """Where memory does not hold the weights alone, the plan with weights in files."""
        smallest = plan(min(PAGE_TOKENS, spec.context_length), None)
        if spec.part is not None:
            return None
        if smallest.total <= available or not _can_be_mapped(checkpoint, smallest.weights):
            return None
        mapped = sum(each.nbytes for each in kept_matrices(spec, checkpoint, ops, target))
        return plan_mapped(
            spec, plan, mapped, available, context_length, state_memory, checkpoint.location
        )

    if state_memory is not None:
        chosen = plan(context_length or spec.context_length, state_memory, sequences)
        if chosen.total > available and (found := in_files()) is not None:
            return found
        if chosen.total > available:
            raise InsufficientMemoryError(
                checkpoint.location,
                f"with {gibibytes(chosen.state)} of state it needs {gibibytes(chosen.total)} of "
                f"memory, and {gibibytes(available)} is available",
                "Use a smaller state_memory, or leave it out",
            )
        return chosen
    try:
        alone = fit_context(
            spec,
            lambda length: plan(length, None),
            available,
            context_length,
            checkpoint.location,
        )
    except InsufficientMemoryError:
        if (found := in_files()) is not None:
            return found
        raise
    more = int(_SPARE_SHARE * max(0, available - alone.total))
    memory = alone.state + min((sequences - 1) * alone.state, more)
    return plan(alone.context_length, memory, sequences)


def _can_be_mapped(checkpoint: Checkpoint, weights: int) -> bool:
    """Whether the address space has room for the files and the weights as they are kept."""
    left = address_space_left()
    return left is None or weights + sum(path.stat().st_size for path in checkpoint.files) <= left


def _say_how_slow(
    model: str,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    backend: Ops,
    target: Format | None,
    plan: MemoryPlan,
    memory: int,
    token_budget: int,
) -> None:
    from firstlight.held_weights import forecast
    from firstlight.host.disk import read_speed

    largest = max(checkpoint.files, key=lambda path: path.stat().st_size)
    speed = read_speed(largest)
    said = (
        f"{model}: its weights take {gibibytes(plan.weights)}, and {gibibytes(max(0, memory))} of "
        "memory are there for them. They stay on disk, and what is used most is held in memory"
    )
    if speed is None:
        warnings.warn(f"{said}. It will be slow", LargerThanMemoryWarning, stacklevel=3)
        return
    expected = forecast(spec, kept_matrices(spec, checkpoint, backend, target), memory, speed)
    warnings.warn(
        f"{said}. The disk reads {gibibytes(round(speed))}/s: expect about "
        f"{_duration(expected.token_seconds)} a token, and {_duration(expected.prompt_seconds)} "
        f"for every {token_budget} tokens of a prompt. --weights int4 makes it smaller",
        LargerThanMemoryWarning,
        stacklevel=3,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _hold(
    decoder: Decoder, checkpoint: Checkpoint, backend: Ops, target: Format | None, memory: int
) -> HeldWeights:
    from firstlight.held_weights import HeldWeights

    matrices = kept_matrices(decoder.spec, checkpoint, backend, target)
    held = HeldWeights(
        decoder.spec,
        decoder.weights,
        [matrix.source for matrix in matrices],
        [None if each is None else each.use for each in decoder.expert_blocks()],
        [None if each is None else each.places for each in decoder.expert_blocks()],
        memory,
    )
    with progress("Reading what is held in memory", total=held.most_bytes) as advance:
        held.begin(advance)
    return held


def _tokenizer(checkpoint: Checkpoint, use: Use) -> Tokenizer | TokenizerError:
    """The tokenizer, or why there is none, where the model is used with token ids."""
    try:
        tokenizer = load_tokenizer(checkpoint)
    except TokenizerError as error:
        if use != "ids":
            raise
        return error
    if use == "chat" and tokenizer.chat_template is None:
        raise no_chat_template(checkpoint)
    return tokenizer
