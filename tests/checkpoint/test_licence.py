"""What is said about a checkpoint's licence."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.licence import licence_of_folder
from tests.support.model_files import gguf_by_hand, gguf_key, gguf_string


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("\ufeff---\r\nlicense:   mit  # ours\r\n---\r\n", "mit"),
        ('---\nlicense: "gemma"\nlicense_name: x\n---\n', "gemma"),
        (
            "---\nlicense: other\nlicense_name: qwen-research\n"
            "license_link: https://example.org/LICENSE\n---\n",
            "qwen-research (https://example.org/LICENSE)",
        ),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- x\n---\n", "mit"),
        ("---\nlicense: ['mit', x]\n---\n", "mit"),
        ("---\nextra_gated_prompt: >-\n  license: fake\nlicense: llama3\n---\n", "llama3"),
        ("---\nlicense_link: LICENSE\n---\n", "LICENSE"),
        ("---\nlicense: a\x1b[31mb\u202ec\n---\n", "a [31mb c"),
        ("---\nlicense: " + "x" * 1000 + "\n---\n", "x" * 199 + "…"),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_front_matter(tmp_path: Path, readme: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_bytes(readme.encode())
    assert licence_of_folder(tmp_path) == licence


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE.txt", "licence.md", "COPYING", "LICENSE-MODEL"]
)
def test_licence_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n\n   ## Some   License 2.0  \nmore\n")
    assert licence_of_folder(tmp_path) == f"{name}: Some License 2.0"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of_folder(tmp_path) == "mit"


def test_unreadable_files_count_as_absent(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    (tmp_path / "LICENSE").write_bytes(b"")
    (tmp_path / "licensed.py").write_text("no licence")
    assert licence_of_folder(tmp_path) is None
    assert licence_of_folder(tmp_path / "missing") is None


def test_licence_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    other = gguf_key("general.license", 8, gguf_string("other"))
    name = gguf_key("general.license.name", 8, gguf_string("llama3.2"))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for keys, expected in (([], None), ([other], "other"), ([other, name], "llama3.2")):
        path.write_bytes(gguf_by_hand(keys, []))
        assert open_checkpoint(path).licence == expected
        # The page beside a lone file may belong to anything; in a model's folder it belongs to it.
        assert open_checkpoint(tmp_path).licence == (expected or "mit")
