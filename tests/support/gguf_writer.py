"""GGUF files as the gguf package writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFWriter


def write_gguf(path: Path, fill: Any, **options: Any) -> Path:
    """A file of the gguf package's GGUFWriter; `fill(writer)` adds to it."""
    writer = GGUFWriter(path, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
