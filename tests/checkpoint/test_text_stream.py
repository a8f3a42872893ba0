"""Text that comes one token at a time must be the text that comes at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.checkpoint.text_stream import TextStream
from firstlight.checkpoint.tokenizer import Tokenizer
from tests.support.texts import all_texts
from tests.support.tiny_tokenizers import EVERY_KIND, byte_level_library


@pytest.fixture(scope="module", params=EVERY_KIND)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return EVERY_KIND[request.param](tmp_path_factory.mktemp("tiny"))


def streamed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*map(stream.push, ids), stream.finish()]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_parts_join_to_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocabulary_size + 1), max_size=40))
    for skip in (True, False):
        for continues in (True, False):
            options = {"skip_special": skip, "continues": continues}
            assert "".join(streamed(tokenizer, ids, **options)) == tokenizer.decode(ids, **options)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    """Up to U+2581, which SentencePiece's kind writes for a space, and one space in front."""
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    decoded = tokenizer.decode(ids, skip_special=False)
    written = b"".join(map(tokenizer.token_bytes, ids)).decode()
    if tokenizer.decode(tokenizer.encode("a▁b", add_special=False)) == "a▁b":
        assert decoded == written == text
    else:
        text = text.replace("▁", " ")
        assert decoded in (text, text.removeprefix(" "))
        assert written in (text, f" {text}")


@pytest.mark.parametrize("name", all_texts())
def test_every_character_comes_once_it_is_whole(tokenizer: Tokenizer, name: str) -> None:
    ids = tokenizer.encode(all_texts()[name], add_special=False)
    data = b""
    text = ""
    stream = tokenizer.stream(skip_special=False, continues=True)
    for token_id in ids:
        data += tokenizer.token_bytes(token_id)
        text += stream.push(token_id)
        whole = data.decode("utf-8", "ignore")  # cuts nothing but an incomplete last character
        assert text == whole
    assert stream.finish() == ""


def stream_of(*pieces: bytes, errors: str = "replace") -> list[str]:
    stream = TextStream(pieces.__getitem__, (), errors)  # type: ignore[arg-type]
    return [*map(stream.push, range(len(pieces))), stream.finish()]


def test_a_cut_character_waits() -> None:
    assert stream_of(b"a\xf0", b"\x9f", b"\x98", b"\x80b") == ["a", "", "", "😀b", ""]


def test_a_replacement_character_of_the_text_itself_comes_at_once() -> None:
    assert stream_of("\ufffd".encode(), b"\xef\xbf", b"\xbd") == ["\ufffd", "", "\ufffd", ""]


def test_what_never_becomes_whole_is_replaced() -> None:
    assert stream_of(b"\xe4\xb8") == ["", "\ufffd"]
    assert stream_of(b"\xe4\xb8", errors="firstlight-replace-each-byte") == ["", "\ufffd" * 2]
    assert stream_of(b"\xe4\xb8", b"x") == ["", "\ufffdx", ""]
    assert stream_of(b"\x80\x80", b"x") == ["\ufffd" * 2, "x", ""]


def test_a_surrogate_in_utf8_is_no_character() -> None:
    assert stream_of(b"\xed\xa0\x80") == ["\ufffd" * 3, ""]


def test_byte_level_bytes_are_decoded_as_the_library_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    library = byte_level_library()
    ours = EVERY_KIND["tokenizer.json, byte-level"](tmp_path_factory.mktemp("tiny"))

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.integers(0, ours.vocabulary_size - 1), max_size=30))
    def same(ids: list[int]) -> None:
        for skip in (True, False):
            decoded = library.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == decoded

    same()


def test_work_does_not_grow_with_what_came_before() -> None:
    """Counts instead of timing: each push asks for the bytes of its own token only."""
    asked: list[int] = []

    def token_bytes(token_id: int) -> bytes:
        asked.append(token_id)
        return b"\xe4"

    stream = TextStream(token_bytes)
    for token_id in range(1000):
        stream.push(token_id)
    assert asked == list(range(1000))
    assert stream.finish() == "\ufffd"
