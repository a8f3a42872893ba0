"""tokenizer.json and tokenizer_config.json of a tokenizer that a GGUF file describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.gguf_metadata import TokenizerMetadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write both files, if the GGUF file has a tokenizer at all.

    Raises:
        TokenizerError: it is damaged, or of a kind that firstlight does not know.
    """
    if "tokenizer.ggml.model" not in checkpoint.config:
        return
    metadata = TokenizerMetadata(checkpoint.config, checkpoint.files[0])
    if metadata.kind == "gpt2":
        from firstlight.checkpoint.byte_level_tokenizer import byte_level_library

        library, starts = byte_level_library(metadata), False
    else:
        from firstlight.checkpoint.gguf_tokenizer import piece_vocabulary
        from firstlight.conversion.piece_library import piece_library

        vocabulary, space_prefix = piece_vocabulary(metadata)
        library, starts = piece_library(vocabulary, space_prefix), True
    names = {name: library.id_to_token(i) for name, i in metadata.named_ids.items()}
    front = names.get("bos_token") if metadata.flag("add_bos_token", starts) else None
    behind = names.get("eos_token") if metadata.flag("add_eos_token", False) else None
    _put_around(library, front, behind)
    library.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    config["clean_up_tokenization_spaces"] = False
    template = metadata.text("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _put_around(library: LibraryTokenizer, front: str | None, behind: str | None) -> None:
    """What the model expects before and behind a text."""
    from tokenizers import processors

    tokens = [token for token in (front, behind) if token is not None]
    if not tokens:
        return
    parts = [
        [each for each in (front, f"${letter}", behind) if each is not None] for letter in "AB"
    ]
    pair = [f"{each}:{number}" for number, part in enumerate(parts) for each in part]
    special = [(token, library.token_to_id(token)) for token in tokens]
    library.post_processor = processors.TemplateProcessing(
        single=parts[0], pair=pair, special_tokens=special
    )
