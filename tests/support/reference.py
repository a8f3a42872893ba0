"""transformers as the oracle: logits and greedy continuations in float32."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens, and the logits [tokens, vocabulary] that each was chosen from."""

    token_ids: list[int]
    logits: Floats


def load_reference(folder: Path, **options: Any) -> Any:
    """transformers' model of a checkpoint, with its weights as float32.

    Eager attention, since the faster ones leave out Gemma 2's soft cap; and eager experts, since
    the faster ones refuse tiny sizes.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            **options,
        )
    return model.eval()


def reference_logits(model: Any, token_ids: Sequence[int]) -> Floats:
    """Logits after every token, float32 [tokens, vocabulary]."""
    _forget_length(model)
    with torch.no_grad():
        logits: Floats = model(torch.tensor([list(token_ids)])).logits[0].float().numpy()
    return logits


def reference_continuation(model: Any, token_ids: Sequence[int], count: int) -> Continuation:
    """The `count` likeliest tokens in turn, as `generate` gives them with its cache."""
    return reference_continuations(model, [token_ids], count)[0]


def reference_continuations(
    model: Any, prompts: Sequence[Sequence[int]], count: int
) -> list[Continuation]:
    """The same of several prompts, all of one length, so that no padding comes in."""
    _forget_length(model)
    rows = torch.tensor([list(prompt) for prompt in prompts])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=-1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = out.sequences[:, rows.shape[1] :].tolist()
    logits = torch.stack(out.logits, dim=1).float().numpy()
    return [Continuation(*found) for found in zip(tokens, logits, strict=True)]


def _forget_length(model: Any) -> None:
    """Undo what dynamic rope remembers of longer sequences: a short one resets it."""
    with torch.no_grad():
        model(torch.tensor([[0]]))
