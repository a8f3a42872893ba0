"""The quick form of a byte-level tokenizer, against the library's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from firstlight.checkpoint import byte_level_tokenizer, quick_library
from firstlight.checkpoint.byte_pairs import BytePairs
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.huggingface_tokenizer import HuggingFaceTokenizer, byte_alphabet
from firstlight.checkpoint.piece_table import CorruptTable
from firstlight.checkpoint.quick_library import QuickLibrary, byte_pairs
from firstlight.checkpoint.tokenizer_folder import load_tokenizer_folder
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from firstlight.checkpoint.word_patterns import WORD_PATTERNS
from firstlight.errors import TokenizerError
from tests.support.texts import all_texts
from tests.support.tiny_tokenizers import (
    CORPUS,
    byte_level_library,
    byte_level_vocabulary,
    piece_library,
    write_gguf,
    write_library_folder,
)

MARKS = ["<|im_end|>", "<think>", " <wide> ", "<norm>", "e\u0301"]


def _texts() -> list[str]:
    choose = random.Random(3)
    source = "".join([*CORPUS, *all_texts().values(), "ab " * 50])
    texts = list(all_texts().values())
    for _ in range(400):
        parts = [choose.choice(MARKS) if choose.random() < 0.2 else "" for _ in range(4)]
        for _ in range(4):
            start = choose.randrange(len(source))
            part = source[start : start + choose.randint(1, 9)]
            parts.append(part * choose.choice([1, 1, 2, 5]))
        choose.shuffle(parts)
        texts.append("".join(parts))
    return texts


TEXTS = _texts()


def _changed(**model: Any) -> tokenizers.Tokenizer:
    description = json.loads(byte_level_library().to_str())
    description["model"] |= model
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def _with_template() -> tokenizers.Tokenizer:
    library = _changed()
    special = ("<|im_start|>", library.token_to_id("<|im_start|>"))
    other = ("<|im_end|>", library.token_to_id("<|im_end|>"))
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|im_start|> $A <|im_end|>", special_tokens=[special, other]
            ),
        ]
    )
    return library


def _with_normalizer() -> tokenizers.Tokenizer:
    library = _changed()
    library.normalizer = normalizers.NFC()
    library.add_tokens(
        [AddedToken("<wide>", lstrip=True, rstrip=True), AddedToken("<norm>", normalized=True)]
    )
    return library


def _with_patterns(name: str) -> tokenizers.Tokenizer:
    library = _changed()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
                for pattern in WORD_PATTERNS[name]
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return library


LIBRARIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "as trained": byte_level_library,
    "whole words": lambda: _changed(ignore_merges=True),
    # Then a word may be a token that its merges do not make.
    "whole words without merges": lambda: _changed(ignore_merges=True, merges=[]),
    "a template": _with_template,
    "a normalizer": _with_normalizer,
    "Qwen2's words": lambda: _with_patterns("qwen2"),
    "DeepSeek V3's words": lambda: _with_patterns("deepseek-v3"),
}


def never() -> tokenizers.Tokenizer:
    raise AssertionError("the whole library is not needed")


def quick(library: tokenizers.Tokenizer, load: Callable[[], Any] = never) -> QuickLibrary:
    """By way of the bytes that are kept."""
    pairs = byte_pairs(library, byte_alphabet())
    assert pairs is not None
    made = QuickLibrary(BytePairs.from_bytes(pairs.to_bytes()), byte_alphabet(), load)
    made._bytes_left = 1 << 40
    return made


class TestIds:
    @pytest.mark.parametrize("name", LIBRARIES)
    def test_are_the_librarys(self, name: str) -> None:
        library = LIBRARIES[name]()
        ours = quick(library, lambda: library)  # some of the texts have words of a thousand bytes
        whole = 0
        for text in TEXTS:
            for special in (True, False):
                for parse in (True, False):
                    ours.encode_special_tokens = library.encode_special_tokens = not parse
                    expected = library.encode(text, add_special_tokens=special).ids
                    ours._whole = None
                    assert ours.encode(text, add_special_tokens=special).ids == expected, text[:80]
                    whole += ours._whole is not None
        assert whole < len(TEXTS) // 2
        library.encode_special_tokens = False

    @settings(max_examples=300, deadline=None)
    @given(st.text(max_size=60))
    def test_of_any_text(self, text: str) -> None:
        library = byte_level_library()
        text = text.encode(errors="ignore").decode()
        assert quick_of_bytes().encode(text).ids == library.encode(text).ids

    @pytest.mark.parametrize("name", LIBRARIES)
    def test_tokens_are_the_librarys(self, name: str) -> None:
        library = LIBRARIES[name]()
        ours = quick(library)
        size = library.get_vocab_size()
        assert ours.get_vocab_size() == size
        for token_id in range(size + 3):
            assert ours.id_to_token(token_id) == library.id_to_token(token_id)
        added = library.get_added_tokens_decoder()
        assert {i: repr(t) for i, t in ours.get_added_tokens_decoder().items()} == {
            i: repr(token) for i, token in added.items()
        }


_MADE: list[QuickLibrary] = []


def quick_of_bytes() -> QuickLibrary:
    if not _MADE:
        _MADE.append(quick(byte_level_library()))
    return _MADE[0]


class TestWholeLibrary:
    def test_is_loaded_once_for_much_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = byte_level_library()
        loaded: list[int] = []

        def load() -> tokenizers.Tokenizer:
            loaded.append(1)
            return library

        ours = quick(library, load)
        ours._bytes_left = 10
        assert ours.encode("five.").ids == library.encode("five.").ids and not loaded
        for text in ("ten letters", "and more"):
            assert ours.encode(text).ids == library.encode(text).ids
        assert loaded == [1]

    def test_is_loaded_for_a_long_word(self) -> None:
        library = byte_level_library()
        ours = quick(library, lambda: library)
        assert ours.encode("a" * 256).ids == library.encode("a" * 256).ids
        assert ours._whole is None
        assert ours.encode("a" * 257).ids == library.encode("a" * 257).ids
        assert ours._whole is library


class TestWhatHasNone:
    @pytest.mark.parametrize(
        "library",
        [
            piece_library,
            lambda: _changed(unk_token="<|endoftext|>"),
            lambda: _changed(end_of_word_suffix="</w>", merges=[]),
        ],
    )
    def test_other_kinds(self, library: Callable[[], tokenizers.Tokenizer]) -> None:
        assert byte_pairs(library(), byte_alphabet()) is None

    def test_words_that_are_not_bytes(self) -> None:
        library = _changed()
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        assert byte_pairs(library, byte_alphabet()) is None

    def test_an_added_letter(self) -> None:
        library = _changed()
        library.add_tokens(["a"])
        assert byte_pairs(library, byte_alphabet()) is None


class TestKept:
    def test_any_changed_bit_is_noticed(self) -> None:
        pairs = byte_pairs(byte_level_library(), byte_alphabet())
        assert pairs is not None
        data = pairs.to_bytes()
        for place in range(0, len(data), len(data) // 50):
            changed = bytearray(data)
            changed[place] ^= 4
            with pytest.raises(CorruptTable):
                BytePairs.from_bytes(bytes(changed))
        with pytest.raises(CorruptTable):
            BytePairs.from_bytes(data[:-1])

    @pytest.fixture
    def worth_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Vocabularies of any size are kept."""
        monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
        for module in (quick_library, byte_level_tokenizer):
            monkeypatch.setattr(module, "WORTH_KEEPING", 1)
        return tmp_path / "cache" / "tokenizers"

    def test_gguf(self, worth_it: Path, tmp_path: Path) -> None:
        vocabulary = byte_level_vocabulary(_with_patterns("qwen2"), "qwen2")
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        self._first_and_second(lambda: load_tokenizer(open_checkpoint(path)), worth_it)

    def test_folder(self, worth_it: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        folder = write_library_folder(
            tmp_path / "model",
            byte_level_library(),
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|new|>",
        )
        self._first_and_second(lambda: load_tokenizer_folder(folder), worth_it)
        assert "pairs" in str(list(worth_it.iterdir()))
        # What else the folder says belongs to the key.
        write_library_folder(folder, byte_level_library(), pad_token="<|another|>")
        other = load_tokenizer_folder(folder)
        assert isinstance(other, HuggingFaceTokenizer)
        assert not isinstance(other._library, QuickLibrary)
        assert len(list(worth_it.iterdir())) == 2

    def _first_and_second(self, load: Callable[[], Any], kept: Path) -> None:
        first, second = load(), load()
        assert not isinstance(first._library, QuickLibrary)
        assert isinstance(second._library, QuickLibrary)
        for name in ("vocabulary_size", "beginning_id", "end_ids", "special_ids"):
            assert getattr(first, name) == getattr(second, name)
        for text in [*TEXTS, "<|new|> at last"]:
            ids = first.encode(text)
            assert second.encode(text) == ids
            assert second.decode(ids, skip_special=False) == first.decode(ids, skip_special=False)
        (file,) = kept.iterdir()
        file.write_bytes(file.read_bytes()[:-9])
        assert not isinstance(load()._library, QuickLibrary)  # damaged: made anew
        assert isinstance(load()._library, QuickLibrary)

    def test_a_file_that_is_damaged_is_refused_as_before(
        self, worth_it: Path, tmp_path: Path
    ) -> None:
        vocabulary = byte_level_vocabulary(_with_patterns("qwen2"), "qwen2")
        assert vocabulary.merges is not None
        vocabulary.merges[3] = "nothing"
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        with pytest.raises(TokenizerError, match="merge 3"):
            load_tokenizer(open_checkpoint(path))
        assert not worth_it.exists()
