"""Driving an engine with pages and chunks smaller than those of `firstlight.load`, so that short
sequences cross many of their borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firstlight.backends import open_device
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.formats.base import Floats
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import make_spec
from firstlight.model.weights import load_weights
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

PAGE_TOKENS = 16
CONTEXT_LENGTH = 256


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens, and the logits [tokens, vocabulary] that each was chosen from."""

    token_ids: list[int]
    logits: Floats


def load_decoder(path: Path, device: str) -> Decoder:
    """The decoder of a checkpoint, without tokenizer and engine.

    No kernel rounds activations: the references keep float32, and are compared far more closely
    than such rounding is. (tests/fidelity/test_rounding.py has kernels as they run by default.)
    """
    checkpoint = open_checkpoint(path)
    spec = make_spec(checkpoint)
    ops = open_device(device, exact=True)
    return Decoder(spec, load_weights(spec, checkpoint, ops), ops)


def new_engine(
    decoder: Decoder, chunk: int, sequences: int = 1, context_length: int = CONTEXT_LENGTH
) -> Engine:
    """An engine that computes at most `chunk` tokens a step, with pages of PAGE_TOKENS."""
    return Engine(decoder, context_length, sequences, chunk, page_tokens=PAGE_TOKENS)


def run(
    engine: Engine,
    token_ids: Sequence[int],
    count: int,
    sampling: SamplingParameters = SamplingParameters(),  # noqa: B008
) -> list[int]:
    """The new tokens of a prompt, beside whatever else the engine has to do."""
    sequence = engine.add(token_ids, sampling, StopConditions(max_tokens=count))
    run_to_end(engine)
    return list(sequence.output_ids)


def cut_and_resumed(decoder: Decoder, length: int) -> tuple[list[int], list[int]]:
    """A text of 30 + 40 tokens, undisturbed; and the same cut back to `length` once 60 of them are
    computed."""
    tokens, stop = prompt(30), StopConditions(max_tokens=40)
    undisturbed = run(new_engine(decoder, 24), tokens, 40)
    engine = new_engine(decoder, 24)
    sequence = engine.add(tokens, SamplingParameters(), stop)
    while sequence.computed < 60:
        engine.step()
    assert engine.pages.can_cut(sequence.pages, length)
    engine.pages.cut(sequence.pages, length)
    sequence.computed = length
    run_to_end(engine)
    return undisturbed, list(sequence.output_ids)


def logits(decoder: Decoder, token_ids: Sequence[int], chunk: int = CONTEXT_LENGTH) -> Floats:
    """Logits after every token, computed `chunk` tokens at a time."""
    return new_engine(decoder, chunk).logits(token_ids)


def continuation(
    decoder: Decoder, token_ids: Sequence[int], count: int, chunk: int = CONTEXT_LENGTH
) -> Continuation:
    """The `count` likeliest tokens in turn."""
    return continuations(decoder, [token_ids], count, chunk)[0]


def continuations(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    count: int,
    chunk: int = CONTEXT_LENGTH,
    context_length: int = CONTEXT_LENGTH,
) -> list[Continuation]:
    """The likeliest continuations of several prompts, computed in one batch."""
    engine = new_engine(decoder, chunk, len(prompts), context_length)
    greedy, stop = SamplingParameters(), StopConditions(max_tokens=count)
    running = [engine.add(prompt, greedy, stop, wants_logits=True) for prompt in prompts]
    rows: list[list[Floats]] = [[] for _ in running]
    while progress := engine.step():
        for part in progress:
            if part.logits is not None:
                rows[running.index(part.sequence)].append(part.logits)
    return [
        Continuation(sequence.output_ids, np.stack(found))
        for sequence, found in zip(running, rows, strict=True)
    ]
