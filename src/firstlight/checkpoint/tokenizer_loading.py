"""A checkpoint's tokenizer, whichever kind its files hold.

Each kind is imported when a checkpoint has it: a command's start does not pay for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firstlight.checkpoint.checkpoint import Checkpoint
    from firstlight.checkpoint.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint, from its own files only.

    Raises:
        TokenizerError: it is missing, damaged, or of a kind that firstlight does not know.
    """
    if checkpoint.kind == "gguf":
        from firstlight.checkpoint.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(checkpoint)
    from firstlight.checkpoint.tokenizer_folder import load_tokenizer_folder

    return load_tokenizer_folder(checkpoint.location)
