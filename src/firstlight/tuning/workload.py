"""What a model asks of a device: steps of typical sizes, made for the model as it is loaded.

A step's sequences are made up: random tokens, and state of random entries, since how long an op
takes depends on sizes and not on what a text says (zeros would hide a wrong result, though).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firstlight.backends.base import Backend
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.ops.attention import round_entries


@dataclass(frozen=True)
class Workload:
    """A step of one kind.

    Attributes:
        name: for people.
        sequences: how many there are.
        rows: tokens of each that are computed.
        context: tokens of each once the step is done.
        weight: how much a second of it counts beside the others'.
    """

    name: str
    sequences: int
    rows: int
    context: int
    weight: float


# One for each range of rows (ops/shape.py). Decoding alone is what a person waits for most, then
# the reading of a long prompt.
WORKLOADS = (
    Workload("decode", 1, 1, 512, 0.4),
    Workload("decode, batch 4", 4, 1, 256, 0.1),
    Workload("decode, batch 16", 16, 1, 256, 0.1),
    Workload("prefill 64", 1, 64, 64, 0.1),
    Workload("prefill 512", 1, 512, 512, 0.3),
)


def fitting(
    workloads: tuple[Workload, ...], context_length: int, state_tokens: int
) -> tuple[Workload, ...]:
    """The workloads as a model of that context length can have them, and without those whose
    state is more than so many tokens in all."""
    found = []
    for each in workloads:
        context = min(each.context, context_length, max(each.rows, state_tokens // each.sequences))
        rows = min(each.rows, context)
        if each.sequences * context <= state_tokens:
            found.append(Workload(each.name, each.sequences, rows, context, each.weight))
    return tuple(found)


def pages_of(workload: Workload, page_tokens: int) -> int:
    """Pages that the workload's sequences need of each stream group."""
    return workload.sequences * -(-workload.context // page_tokens)


def make_state(
    decoder: Decoder, backend: Backend, pages: int, page_tokens: int, dtype: str
) -> State:
    """State with so many pages in each group, filled with random entries."""
    state = decoder.new_state((pages,) * len(decoder.groups), page_tokens, dtype)
    generator = np.random.default_rng(0)
    for stream in (stream for layer in state for stream in layer):
        values = generator.standard_normal(stream.shape, dtype=np.float32)
        backend.assign(stream, round_entries(values, backend.download(stream).dtype))
    return state


def make_batch(decoder: Decoder, workload: Workload, page_tokens: int) -> Batch:
    """The workload's step, its sequences on pages of their own."""
    count, rows = workload.sequences, workload.rows
    positions = np.tile(np.arange(workload.context - rows, workload.context), count)
    each = -(-workload.context // page_tokens)
    table = np.arange(count * each, dtype=np.int32).reshape(count, each)
    starts = np.arange(count + 1, dtype=np.int32) * rows
    tokens = np.random.default_rng(1).integers(0, decoder.spec.vocabulary_size, count * rows)
    return Batch(
        token_ids=tokens.astype(np.int32),
        positions=positions.astype(np.int32),
        lengths=np.full(count * rows, workload.context, np.int32),
        row_starts=starts.astype(np.int32),
        page_tables=(table,) * len(decoder.groups),
        page_tokens=page_tokens,
        wanted=(starts[1:] - 1).astype(np.int32),
    )
