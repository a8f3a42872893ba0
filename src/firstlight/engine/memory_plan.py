"""How much memory a model needs, from its spec and its files' headers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from firstlight.engine.batching import HEAD_ROWS
from firstlight.engine.options import (
    PAGE_TOKENS,
    TOKEN_BUDGET,
    check_options,
)
from firstlight.engine.state_size import page_bytes, page_counts, pages_per_sequence
from firstlight.errors import InsufficientMemoryError
from firstlight.formats.base import Format
from firstlight.model import attention
from firstlight.model.attention_spec import AttentionSpec, LatentAttentionSpec
from firstlight.model.spec import ModelSpec
from firstlight.model.stream import StreamSpec, first_seen, group_streams, whole_pages
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.weights import weight_bytes
from firstlight.ops import Ops

_WORKING_BYTES = 64 << 20
"""Of weights that are mapped: what is in memory at a time at least, while they are packed or
multiplied."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of memory that a model needs at a context length.

    Attributes:
        weights: in the form they are kept in, whether in this process's memory or mapped from a
            file, whose pages the system can drop but every token needs.
        state: pages of all streams, which the sequences share.
        activations: the largest step's intermediate values, estimated from above.
        state_dtype: what the state is kept in.
        mapped: of the weights, what stays in files that are mapped because memory does not hold
            all of it; 0 where it does.
    """

    context_length: int
    weights: int
    state: int
    activations: int
    state_dtype: str = "float32"
    mapped: int = 0

    @property
    def total(self) -> int:
        """What must be in memory."""
        return self.weights - self.mapped + self.state + self.activations


def plan_memory(
    spec: ModelSpec,
    files: TensorFiles,
    context_length: int,
    target: Format | None = None,
    state_dtype: str = "float32",
    sequences: int = 1,
    token_budget: int = TOKEN_BUDGET,
    ops: Ops | None = None,
    state_memory: int | None = None,
) -> MemoryPlan:
    """The plan for an engine with these options, and `target` as the weights' format (None: as
    stored), on the backend `ops` (None: one that uses weights as they are stored).

    Raises:
        RequestError: an option is out of range.
        InsufficientMemoryError: state_memory is less than one page of tokens takes.
    """
    check_options(context_length, sequences, token_budget, state_dtype, state_memory=state_memory)
    state = sequences * state_bytes(spec, context_length, state_dtype, token_budget)
    if state_memory is not None:
        state = _pool_bytes(spec, context_length, state_dtype, token_budget, state_memory)
    return MemoryPlan(
        context_length,
        weight_bytes(spec, files, target, ops),
        state,
        activation_bytes(spec, token_budget, sequences),
        state_dtype,
    )


def state_bytes(
    spec: ModelSpec,
    context_length: int,
    dtype: str = "float32",
    token_budget: int = TOKEN_BUDGET,
) -> int:
    """Bytes of the pages that one sequence of that length holds at most."""
    layers = _streams(spec)
    page_tokens = whole_pages(layers, PAGE_TOKENS)
    return sum(
        pages_per_sequence(stream.window, context_length, token_budget, page_tokens)
        * (page_tokens // stream.stride)
        * stream.entry_bytes(dtype)
        for streams in layers
        for stream in streams
    )


def _pool_bytes(
    spec: ModelSpec, context_length: int, dtype: str, token_budget: int, memory: int
) -> int:
    """Bytes of the whole pages that an engine makes of so much memory."""
    streams = _streams(spec)
    groups, page_tokens = group_streams(streams), whole_pages(streams, PAGE_TOKENS)
    sizes = [page_bytes(streams, group, dtype, page_tokens) for group in groups]
    counts = page_counts(groups, sizes, memory, context_length, token_budget, page_tokens)
    return sum(count * size for count, size in zip(counts, sizes, strict=True))


def state_bytes_per_token(spec: ModelSpec, dtype: str = "float32") -> int:
    """Bytes that one more token adds while no window is full."""
    return sum(
        stream.entry_bytes(dtype) // stream.stride
        for streams in _streams(spec)
        for stream in streams
    )


def entries_bytes(spec: ModelSpec, length: int, dtype: str = "float32") -> int:
    """Bytes of the entries that a sequence of so many tokens is remembered by: all that its next
    token needs, and no page that is partly filled."""
    return sum(
        (length // stream.stride - first_seen(stream.window, stream.run, length) // stream.stride)
        * stream.entry_bytes(dtype)
        for streams in _streams(spec)
        for stream in streams
    )


def _streams(spec: ModelSpec) -> tuple[tuple[StreamSpec, ...], ...]:
    """Of each layer."""
    return tuple(attention.streams(layer.attention) for layer in spec.all_layers)


def activation_bytes(spec: ModelSpec, tokens: int = TOKEN_BUDGET, sequences: int = 1) -> int:
    """An upper estimate of the float32 intermediates of a step of so many tokens: four rows of the
    widest layer for each, and the logits of the sequences that are in memory at once."""
    widest = max(
        max(layer.feed_forward.width, _widest_queries(layer.attention)) for layer in spec.all_layers
    )
    return 4 * (
        tokens * 4 * (widest + spec.residual_streams * spec.hidden_size)
        + (1 + min(sequences, HEAD_ROWS)) * spec.vocabulary_size
    )


def _widest_queries(attention: AttentionSpec) -> int:
    if isinstance(attention, LatentAttentionSpec):
        # Each head's query and result as they meet the latents.
        return attention.heads * (attention.entry_size + attention.latent_size)
    return attention.query.weight.shape[0]


def fit_context(
    spec: ModelSpec,
    plan: Callable[[int], MemoryPlan],
    available: int,
    wanted: int | None,
    subject: object,
) -> MemoryPlan:
    """The plan at the wanted context length, or else at the longest that fits.

    Args:
        plan: the plan at a context length.
        available: bytes that may be used.
        wanted: None for the model's own context length, shortened where memory is short.

    Raises:
        InsufficientMemoryError: it does not fit; foreseen, before anything is loaded.
        RequestError: `wanted` is no context length.
    """
    full = plan(spec.context_length if wanted is None else wanted)
    if full.total <= available:
        return full
    smallest = plan(min(PAGE_TOKENS, spec.context_length))
    if smallest.total > available:
        raise InsufficientMemoryError(
            subject,
            f"it needs {gibibytes(smallest.total)} of memory ({gibibytes(smallest.weights)} of "
            f"weights) and {gibibytes(available)} is available",
            "Convert the weights on loading with --weights int4, free memory, or use a larger "
            "machine",
        )
    low, high = 1, -(-full.context_length // PAGE_TOKENS)
    while low < high - 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (
            (middle, high) if plan(middle * PAGE_TOKENS).total <= available else (low, middle)
        )
    longest = plan(low * PAGE_TOKENS)
    if wanted is not None:
        raise InsufficientMemoryError(
            subject,
            f"a context of {wanted} tokens needs {gibibytes(full.total)} of memory and "
            f"{gibibytes(available)} is available",
            f"Use a context of at most {longest.context_length} tokens"
            + (", or --state bfloat16" if full.state_dtype == "float32" else ""),
        )
    return longest


def plan_mapped(
    spec: ModelSpec,
    plan: Callable[[int, int | None], MemoryPlan],
    mapped: int,
    available: int,
    wanted: int | None,
    state_memory: int | None,
    subject: object,
) -> MemoryPlan | None:
    """The plan of a model whose weights are larger than memory and stay mapped from their files;
    None where memory does not even hold what a step needs beside them.

    Args:
        plan: the plan at a context length and with so much memory for state (None: one sequence's).
        mapped: bytes of weights that lie in files.
        available: bytes that may be used. State gets a quarter of it, unless a longer context or
            more memory for state is asked for.
    """
    working = min(mapped, _WORKING_BYTES)

    def at(length: int) -> MemoryPlan:
        return replace(plan(length, state_memory), mapped=mapped - working)

    share = available if wanted is not None or state_memory is not None else available // 4
    fixed = replace(at(1), state=0).total
    try:
        if state_memory is not None:
            found = at(wanted or spec.context_length)
            return found if found.total <= available else None
        return fit_context(spec, at, min(available, fixed + share), wanted, subject)
    except InsufficientMemoryError:
        return None


def gibibytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
